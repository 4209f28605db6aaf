"""Failpoints: named places between two steps where a test can have the Controller's process killed.

`stateDir/stop-at` holds the name of one. When the process reaches it, it deletes the file and kills itself, like a power
cut. Only tests write that file. Not for stopping a cluster: use `swiftclaw down`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

FILE = "stop-at"
POINTS = (
    "deploy.packed",  # the code is stored, no version needs it yet
    "deploy.saved",  # a version is desired, nothing of it runs
    "start.before",  # its apps are saved, Serve does not have them
    "start.after",  # Serve has them
    "traffic.saved",  # a share is saved, no gateway has it
    "takeover.saved",  # the canary has become stable, the old version still runs
    "promote.saved",
    "rollback.saved",
    "delete.before",  # an app is no longer desired, Serve still has it
    "delete.after",
    "regions.saved",
)


class Failpoints:
    """Call with the name of a failpoint."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def __call__(self, point: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._file.read_text("utf-8").strip() == point:
                self._file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
