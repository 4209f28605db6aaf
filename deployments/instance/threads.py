"""Threads for what would block the event loop, and a request's place on its instance while one of them still runs.

A thread cannot be cancelled: when its request ends first (the client has left, or the time is over), it runs on, with the work
and the memory that `maxConnectionsPerInstance` limits. So a request gives its slot back when its last abandoned thread has
ended. Threads start as they are needed: the number of requests that the instance admits limits them, not a second queue.
Not for the threads of a mounted app's framework: Starlette's requests wait for their threads themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

AS_MANY_AS_ADMITTED = 2**31  # no queue: every call has a thread at once


class RequestSlot:
    """One request's place on the instance. `freed` is called once, on the loop, when nothing of the request runs any more."""

    __slots__ = ("_freed", "_holders", "_loop")

    def __init__(self, freed: Callable[[], None]) -> None:
        self._freed, self._holders = freed, 1
        self._loop = asyncio.get_running_loop()

    def hold(self, work: Future[Any]) -> None:
        """Keep the slot until `work` has ended. Without effect once the slot is free (a task that outlived its request)."""
        if self._holders:
            self._holders += 1
            work.add_done_callback(self._ended)

    def leave(self) -> None:
        """The request, or a thread that held its slot, has ended."""
        self._holders -= 1
        if not self._holders:
            self._freed()

    def _ended(self, _: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self.leave)


current_slot: ContextVar[RequestSlot | None] = ContextVar("current_slot", default=None)


class Work(Future[T]):
    """A call in a thread, on behalf of a request."""

    def __init__(self, slot: RequestSlot | None) -> None:
        super().__init__()
        self._slot = slot

    def cancel(self) -> bool:
        """What asyncio calls when the waiting task is cancelled. A call that runs already is abandoned."""
        if super().cancel():
            return True
        self.abandon()
        return False

    def abandon(self) -> None:
        """Nobody waits for the result any more; the request's slot is held until the call returns."""
        if self._slot is not None and not self.done():
            self._slot.hold(self)

    def run(self, call: Callable[[], T]) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            self.set_exception(error)
            del self  # the traceback refers to this frame
        else:
            self.set_result(result)


class Threads(ThreadPoolExecutor):
    """An executor whose calls belong to the request that submits them. `most`: threads at once; default: one per call."""

    def __init__(self, name: str, most: int = AS_MANY_AS_ADMITTED) -> None:
        super().__init__(most, thread_name_prefix=name)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Work[T]:
        work: Work[T] = Work(current_slot.get())
        super().submit(work.run, lambda: fn(*args, **kwargs))
        return work
