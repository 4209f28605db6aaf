"""Writes of one file that hold nobody up for long: on a disk that hangs, the thread that writes waits, and the caller goes on.

Nothing can interrupt a write that the disk does not answer. Given up, it takes no effect when the disk answers at last, unless
it was just then putting the new file in the place of the old one.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

ANSWER_S = 1.0  # a write that takes longer is given up
Write = Callable[[Path, str, Callable[[], bool]], None]  # file, content, whether to go on: asked before the file changes


class BoundedWrites:
    """`write`: writes the file whole at once, or not at all. One at a time."""

    def __init__(self, file: Path, write: Write, within_s: float = ANSWER_S) -> None:
        self._file, self._write, self._within_s = file, write, within_s
        self._latest: _Attempt | None = None

    def __call__(self, content: str) -> None:
        """Raises OSError; TimeoutError if this write, or the one before, has not returned in time."""
        if self._latest is not None and not self._latest.over.is_set():
            raise _no_answer()
        attempt = self._latest = _Attempt()
        threading.Thread(
            target=attempt.run, args=(self._write, self._file, content), daemon=True, name=f"write {self._file.name}"
        ).start()
        if not attempt.over.wait(self._within_s):
            attempt.give_up()
            raise _no_answer()
        if attempt.error is not None:
            raise attempt.error


class _Attempt:
    def __init__(self) -> None:
        self.over = threading.Event()
        self.error: Exception | None = None
        self._given_up = False

    def run(self, write: Write, file: Path, content: str) -> None:
        try:
            write(file, content, lambda: not self._given_up)
        except Exception as error:  # raised again by the caller: without it, nothing was written
            self.error = error
        finally:
            self.over.set()

    def give_up(self) -> None:
        self._given_up = True


def _no_answer() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "the disk does not answer")
