"""The user's sync functions and generators, in threads, with the context variables of the request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Executor
from contextvars import copy_context

from deployments.instance.threads import Threads

_END = object()


async def in_thread(call: Callable[[], object], threads: Executor) -> object:
    """Run `call` in a thread with the caller's context variables. Cancelled, it returns at once; the thread runs on."""
    context = copy_context()

    def run() -> object:
        try:
            return context.run(call)
        except (StopIteration, GeneratorExit) as error:  # a future cannot carry them: they would end what awaits it
            raise RuntimeError(f"the function raised {type(error).__name__}") from error

    return await asyncio.get_running_loop().run_in_executor(threads, run)


async def from_thread(items: Iterator[object], threads: Threads) -> AsyncGenerator[object, None]:
    """The items of a sync iterator. Each step runs in a thread; all steps share one context.

    A step that is running when the reader leaves closes the iterator in its own thread, when it returns.
    """
    steps, loop = _Steps(items), asyncio.get_running_loop()
    try:
        while (item := await loop.run_in_executor(threads, steps.next)) is not _END:
            yield item
    finally:
        if steps.stop():
            closing = threads.submit(steps.close)
            try:
                await asyncio.shield(asyncio.wrap_future(closing))
            except asyncio.CancelledError:
                closing.abandon()
                raise


class _Steps:
    """The steps of one sync iterator: never two at a time, and none after it is stopped."""

    def __init__(self, items: Iterator[object]) -> None:
        self._items, self._context = items, copy_context()
        self._lock = threading.Lock()
        self._running = self._stopped = False

    def next(self) -> object:
        with self._lock:
            if self._stopped:
                return _END
            self._running = True
        try:
            return self._context.run(next, self._items, _END)
        except GeneratorExit as error:  # as in `in_thread`
            raise RuntimeError("the generator raised GeneratorExit") from error
        finally:
            with self._lock:
                self._running = False
                abandoned = self._stopped
            if abandoned:
                self.close()

    def stop(self) -> bool:
        """Start no further step. False: a step is running, and will close the iterator."""
        with self._lock:
            self._stopped = True
            return not self._running

    def close(self) -> None:
        if isinstance(self._items, Generator):
            self._context.run(self._items.close)
