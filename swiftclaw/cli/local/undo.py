"""Half-started is worse than not started: what was begun is undone when the rest fails or is interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Undo:
    """The steps back, in the order of the steps that were taken."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []

    def by(self, step: Callable[[], object]) -> None:
        self.steps.append(step)


@contextlib.contextmanager
def undoing(announce: Callable[[], None]) -> Iterator[Undo]:
    """The steps back are taken, the last one first, only when the block fails. Each is tried; Ctrl-C interrupts none."""
    undo = Undo()
    try:
        yield undo
    except BaseException:
        if undo.steps:
            with _signals(signal.SIG_IGN), contextlib.ExitStack() as back:
                announce()
                for step in undo.steps:
                    back.callback(step)
        raise


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM means what Ctrl-C means: stop, but undo first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _signals(interrupt):
        yield


@contextlib.contextmanager
def _signals(handler: Any) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handled in zip(SIGNALS, before, strict=True):
            signal.signal(number, handled)
