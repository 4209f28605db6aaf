"""Places between two steps, by name, at which a test can have the Controller's process killed.

`stateDir/stop-at` holds the name of one; the process that comes by takes the file away and kills itself, as a power cut
would. Nobody but a test writes that file. Not for stopping: that is `swiftclaw down`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

FILE = "stop-at"
POINTS = (
    "deploy.packed",  # the code is kept, nobody wants it yet
    "deploy.saved",  # a version is wanted, nothing of it runs
    "start.before",  # its apps are remembered, Serve does not know of them
    "start.after",  # Serve knows of them
    "traffic.saved",  # a share is remembered, no gateway knows of it
    "takeover.saved",  # a canary is the stable version, the old one still runs
    "promote.saved",
    "rollback.saved",
    "delete.before",  # an app is no longer wanted, Serve has not been told
    "delete.after",
    "regions.saved",
)


class Failpoints:
    """Call it with the name of a point."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def __call__(self, point: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._file.read_text("utf-8").strip() == point:
                self._file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
