"""Half-started is worse than not started: steps that were taken are undone when a later one fails or is interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Undo:
    """How to undo each step that was taken, in the order in which they were taken."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []

    def by(self, step: Callable[[], object]) -> None:
        self.steps.append(step)


@contextlib.contextmanager
def undoing(announce: Callable[[], None]) -> Iterator[Undo]:
    """When the block fails, undo its steps, last first. One that fails stops none of the others; nor does Ctrl-C."""
    undo = Undo()
    try:
        yield undo
    except BaseException:
        if undo.steps:
            with _signals(signal.SIG_IGN), contextlib.ExitStack() as stack:
                announce()
                for step in undo.steps:
                    stack.callback(step)
        raise


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C: stop, but undo first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _signals(interrupt):
        yield


@contextlib.contextmanager
def _signals(handler: Any) -> Iterator[None]:
    previous = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handled in zip(SIGNALS, previous, strict=True):
            signal.signal(number, handled)
