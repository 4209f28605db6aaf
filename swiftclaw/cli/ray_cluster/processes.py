"""The processes that `up` started, and no others.

A process is identified by its id *and* its creation time: ids are reused, and another program that got a recorded id must
never be touched.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

SAME_S = 2.0  # tolerance for creation times: the clock behind them may be corrected
KILLED_S = 5.0  # how long a killed process may take to disappear
POLL_S = 0.02


@dataclass(frozen=True)
class StartedProcess:
    """What is recorded about a process."""

    pid: int
    created: float  # seconds since the epoch


def identify(pid: int) -> StartedProcess:
    return StartedProcess(pid, psutil.Process(pid).create_time())


def find(started: StartedProcess) -> psutil.Process | None:
    """The process, if it still runs and is the one that was started."""
    try:
        process = psutil.Process(started.pid)
        same = abs(process.create_time() - started.created) < SAME_S
        return process if same and _runs(process) else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def stop(started: Iterable[StartedProcess], grace_s: float, mark: str = "") -> int:
    """Send SIGTERM to the processes and their children, then SIGKILL what is left. Returns how many were killed.

    Children are looked up first; later they can no longer be attributed. `mark`: a string that only command lines of this
    cluster contain. For a process that is gone already, the processes of its session with the mark are stopped instead.
    """
    expected = list(started)
    roots = [process for process in map(find, expected) if process]
    gone = {one.pid for one in expected} - {process.pid for process in roots}
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
    """The processes that still run after that time."""
    deadline, left = time.monotonic() + seconds, list(processes)
    while (left := [process for process in left if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def _runs(process: psutil.Process) -> bool:
    """Whether any thread of it does, and with it its sockets: then a zombie does not only wait for its parent to reap it."""
    try:
        return bool(process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1))
    except psutil.NoSuchProcess:
        return False


def _orphans(sessions: Collection[int], mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        try:
            if os.getsid(process.pid) in sessions and any(mark in word for word in process.info["cmdline"] or ()):
                yield process
        except OSError:
            continue  # gone, or of another user


def _children(process: psutil.Process) -> Sequence[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil refuses if another process has the id by now
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return


def ray_addresses() -> list[str]:
    """The head addresses of this user's Ray nodes on this machine, the one with the most nodes first."""
    nodes: dict[str, int] = {}
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        if process.info["name"] != "raylet" or process.info["uids"] != psutil.Process().uids():
            continue
        for argument in process.info["cmdline"] or ():
            if argument.startswith("--gcs-address="):
                address = argument.partition("=")[2]
                nodes[address] = nodes.get(address, 0) + 1
    return sorted(nodes, key=lambda address: -nodes[address])


def holder(port: int) -> str:
    """` (python3, pid 123)` for the process that listens on the port; empty when it cannot be determined."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
                return f" ({psutil.Process(connection.pid).name()}, pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
