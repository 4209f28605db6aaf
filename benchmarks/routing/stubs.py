"""The two instances of the stub agent that the other routers are put in front of. One that was killed is started again by hand.

(SwiftClaw's instances are the cluster's: Ray starts a new one.)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from comparison import HOST, processes

from routing.stub import LOG_VARIABLE

COUNT = 2


class Stubs:
    """Running stubs, each under uvicorn. `addresses`: host:port of each."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log
        self._ports = [processes.free_port() for _ in range(COUNT)]
        self._stack = contextlib.ExitStack()
        self._processes: list[psutil.Process] = [self._start(port) for port in self._ports]

    @property
    def addresses(self) -> Sequence[str]:
        return [f"{HOST}:{port}" for port in self._ports]

    def kill(self) -> None:
        """End the first one as `kill -9` does."""
        self._processes[0].kill()

    def restart(self) -> None:
        """Start the first one again, at its port."""
        self._processes[0] = self._start(self._ports[0])

    def stop(self) -> None:
        self._stack.close()

    def _start(self, port: int) -> psutil.Process:
        command = [
            sys.executable, "-m", "uvicorn", "--factory", "routing.stub:from_environment", "--host", HOST, "--port", str(port),
            "--log-level", "warning", "--no-access-log",
        ]  # fmt: skip
        environment = {LOG_VARIABLE: str(self._log)}
        started = self._stack.enter_context(processes.running(command, self._folder, environment, log=f"stub-{port}.log"))
        return psutil.Process(started.pid)


@contextlib.contextmanager
def running(folder: Path, log: Path) -> Iterator[Stubs]:
    """The stubs, when both listen. `log`: where they write their executions."""
    stubs = Stubs(folder, log)
    try:
        for address in stubs.addresses:
            processes.until_listening("the stub agent", int(address.rpartition(":")[2]))
        yield stubs
    finally:
        stubs.stop()
