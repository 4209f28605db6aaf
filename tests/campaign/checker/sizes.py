"""What a process holds stays flat once it is warm: memory, file descriptors, threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median

from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import History
from tests.campaign.record import Size

FEW = 6  # looks at a process: fewer say nothing


def check_sizes(history: History, findings: Findings) -> None:
    lives: dict[int, list[Size]] = defaultdict(list)
    for size in history.record.sizes:
        lives[size.pid].append(size)
    for pid, sizes in lives.items():
        sizes.sort(key=lambda one: one.at)
        warm = [one for one in sizes if one.at >= sizes[0].at + history.slack.warm_up_s]
        if len(warm) >= FEW:
            _flat(history, findings, pid, warm)


def _flat(history: History, findings: Findings, pid: int, warm: list[Size]) -> None:
    slack, seconds = history.slack, warm[-1].at - warm[0].at
    for what, of, allowed in (
        ("KiB of memory", _memory, slack.memory_kib + slack.memory_kib_per_s * seconds),
        ("file descriptors", _files, float(slack.files)),
        ("threads", _threads, float(slack.threads)),
    ):
        first, last = ends(warm, of)
        if last - first > allowed:
            text = f"{warm[0].role} {pid}: {first:.0f} {what} when it was warm, {last:.0f} after {seconds:.0f} s more"
            findings.violation("flat", text, warm[0].at, warm[-1].at, processes=[pid])


def ends(sizes: list[Size], of: Callable[[Size], int]) -> tuple[float, float]:
    """The medians of the first and the last few looks: one look may fall into a burst."""
    return median(map(of, sizes[:3])), median(map(of, sizes[-3:]))


def _memory(size: Size) -> int:
    return size.rss_kib


def _files(size: Size) -> int:
    return size.files


def _threads(size: Size) -> int:
    return size.threads
