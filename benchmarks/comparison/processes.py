"""Starts processes of a contender, knows them later, and ends all of them.

Every process of a contender carries its folder in its environment (RAY_TMPDIR); processes are found by it, not by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from comparison import HOST
from swiftclaw.cli.ray_cluster import driver

BENCHMARKS = Path(__file__).parents[1]
ROOT = BENCHMARKS.parent
PATIENCE_S = 120.0


class CannotStart(Exception):
    """A contender failed to start; the text names it and the reason."""


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, extra: Mapping[str, str], *, ends_with_input: bool = False, log: str = "log"
) -> Iterator[subprocess.Popen[bytes]]:
    """A process; on exit it is ended, by closing its standard input if it `ends_with_input`, else by SIGTERM.

    Its output is written to the file `log` of the folder; the standard output of one that `ends_with_input` is a pipe instead.
    """
    with (folder / log).open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE if ends_with_input else errors, stderr=errors,
            cwd=folder, env={**environment(folder), **extra}, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if not ends_with_input:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def folder(name: str, parent: Path) -> Iterator[Path]:
    """A folder; on exit the processes that use it are killed and it is removed.

    The name is short: HAProxy limits a socket's path to 97 characters, of which Serve's own part takes 68.
    """
    folder = parent / name
    folder.mkdir()
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 5
        while (left := processes_of(folder)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """In /tmp, and short: below it Ray makes sockets, whose paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process that was started for that folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("RAY_TMPDIR") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def environment(folder: Path) -> dict[str, str]:
    """Nothing of the caller's Ray or SwiftClaw settings, but how Ray's clusters on this machine are protected."""
    ours = ("RAY_", "SWIFTCLAW_")
    kept = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_") or not name.startswith(ours)}
    return {
        **kept,
        "RAY_AUTH_MODE": driver.auth_mode(),  # Ray must find it when it is imported
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "local",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{BENCHMARKS}",
        "NO_COLOR": "1",
    }


def until_listening(name: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CannotStart(f"{name} does not listen on port {port}: {error}") from None
            time.sleep(0.05)
