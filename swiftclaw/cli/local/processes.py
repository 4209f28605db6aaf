"""Processes that we started, and no others.

A process is known by its id *and* the time it was created: ids are used again, and a stranger that got one of ours must
never be touched.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

SAME_S = 2.0  # the kernel's clock for creation times may be corrected by that much
KILLED_S = 5.0  # how long a killed process may take to vanish
LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class StartedProcess:
    """One process of ours, as it is remembered."""

    pid: int
    created: float  # seconds since the epoch


def remember(pid: int) -> StartedProcess:
    return StartedProcess(pid, psutil.Process(pid).create_time())


def find(started: StartedProcess) -> psutil.Process | None:
    """The process if it is still the one that was started, and runs."""
    try:
        process = psutil.Process(started.pid)
        same = abs(process.create_time() - started.created) < SAME_S
        return process if same and _runs(process) else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def stop(started: Iterable[StartedProcess], grace_s: float, mark: str = "") -> int:
    """Ask them and their children to stop, then kill what is left. Returns how many were killed.

    The children are looked up first: afterwards nothing would say whose they were. `mark`: what the command lines of
    theirs say and no others' do; where a process is gone, those of its session that bear it are stopped in its place.
    """
    known = list(started)
    roots = [process for process in map(find, known) if process]
    gone = {one.pid for one in known} - {process.pid for process in roots}
    if mark and gone:
        roots.extend(_orphans(gone, mark))
    trees = dict.fromkeys([*roots, *(child for root in roots for child in _children(root))])
    for process in trees:
        _signal(process, signal.SIGTERM)
    left = _wait(trees, grace_s)
    for process in left:
        _signal(process, signal.SIGKILL)
    _wait(left, KILLED_S)
    return len(left)


def _wait(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run then. A zombie does not: all that is left of it is for its parent to take notice."""
    deadline, left = time.monotonic() + seconds, list(processes)
    while (left := [process for process in left if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _orphans(sessions: Collection[int], mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        try:
            if os.getsid(process.pid) in sessions and any(mark in word for word in process.info["cmdline"] or ()):
                yield process
        except OSError:
            continue  # gone, or not ours to see


def _children(process: psutil.Process) -> Sequence[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil refuses when the id has gone to another process
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return


def ray_addresses() -> list[str]:
    """Where the Ray nodes of this user on this machine have their head, most of them first."""
    found: dict[str, int] = {}
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        if process.info["name"] != "raylet" or process.info["uids"] != psutil.Process().uids():
            continue
        for argument in process.info["cmdline"] or ():
            if argument.startswith("--gcs-address="):
                address = argument.partition("=")[2]
                found[address] = found.get(address, 0) + 1
    return sorted(found, key=lambda address: -found[address])


def holder(port: int) -> str:
    """` (python3, pid 123)` of who listens on that port, or nothing when that cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            at = connection.laddr
            if connection.status == psutil.CONN_LISTEN and at and at.port == port and connection.pid:
                return f" ({psutil.Process(connection.pid).name()}, pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
