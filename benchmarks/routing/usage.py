"""CPU time and memory of a group of processes. Ticks of the kernel's clock limit CPU time to 10 ms per process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    """`cpu_s`: user and system time of the processes since they started; `rss_mb`: their resident memory, 10^6 bytes."""

    cpu_s: float = 0.0
    rss_mb: float = 0.0

    def since(self, before: Usage) -> float:
        """CPU seconds since then."""
        return self.cpu_s - before.cpu_s


def of(processes: Iterable[psutil.Process]) -> Usage:
    """A process that has ended counts for nothing."""
    cpu_s = rss = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            cpu_s += times.user + times.system
            rss += process.memory_info().rss
    return Usage(cpu_s, rss / 1e6)


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and all of its descendants; none if it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
