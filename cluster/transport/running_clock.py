"""A clock that stands still while this process does not run, for every deadline that judges another side's silence.

A process that is stopped (SIGSTOP, a paused virtual machine, a loop that is blocked) finds all its deadlines in the past when
it continues, and what arrived meanwhile unread. Judged by a usual clock, it would close connections whose requests wait in its
sockets, and take healthy peers for dead. This clock is the event loop's own: a tick that comes late is a pause, which does not
count, and the clock continues only CATCH_UP_S later, so that what has arrived is read before anything is judged by it.
Not for durations that are reported, nor for what was promised in real time (rate limits, the end of a drain).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

TICK_S = 0.1
LATE_S = 0.5  # a loop that has not ticked for this long has paused
CATCH_UP_S = 0.25  # after a pause, the time for reading what has arrived; it does not count either
LEAST_SLEEP_S = 0.02  # while the clock stands still, a deadline does not come closer
_ATTRIBUTE = "swiftclaw_running_clock"


class RunningClock:
    """Monotonic seconds, less the pauses. `running_clock()` returns the one of the running event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._loop, self._monotonic = loop, monotonic
        self._paused_s = 0.0  # the length of all pauses that are over
        self._now = monotonic()  # the newest time that was read
        self._valid_until = self._late_at = self._now + LATE_S  # real time; beyond it, this clock stands still
        loop.call_later(TICK_S, self._tick)

    def now(self) -> float:
        real = self._monotonic()
        if real < self._valid_until:
            self._now = real - self._paused_s
        return self._now

    def _tick(self) -> None:
        real = self._monotonic()
        if real > self._late_at:  # as often as it pauses: what has arrived is read first
            self._valid_until, self._late_at, again_s = 0.0, real + CATCH_UP_S + LATE_S, CATCH_UP_S
        else:
            if self.catching_up:
                self._paused_s = real - self._now
            self._now = real - self._paused_s
            self._valid_until = self._late_at = real + LATE_S
            again_s = TICK_S
        self._loop.call_later(again_s, self._tick)

    @property
    def catching_up(self) -> bool:
        """After a pause: the clock stands still while the loop reads what has arrived."""
        return self._monotonic() >= self._valid_until

    @property
    def paused_s(self) -> float:
        """The length of all pauses so far, the present one included."""
        real = self._monotonic()
        return self._paused_s if real < self._valid_until else real - self._now

    async def wait_until(self, task: asyncio.Future[Any], deadline: Callable[[], float]) -> bool:
        """Whether the task is done before the deadline, which may move meanwhile. The task is left as it is."""
        while not task.done():
            left_s = deadline() - self.now()
            if left_s <= 0:
                return False
            await asyncio.wait({task}, timeout=max(left_s, LEAST_SLEEP_S))
        return True

    async def wait_for(self, work: Awaitable[Result], seconds: float) -> Result:
        """As `asyncio.wait_for`, by this clock. Raises asyncio.TimeoutError."""
        task, ends_at = asyncio.ensure_future(work), self.now() + seconds
        try:
            if not await self.wait_until(task, lambda: ends_at):
                raise asyncio.TimeoutError
        except BaseException:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        return task.result()


def running_clock() -> RunningClock:
    """The clock of the running event loop, which keeps it."""
    loop = asyncio.get_running_loop()
    attributes = vars(loop)
    clock: RunningClock | None = attributes.get(_ATTRIBUTE)
    if clock is None:
        clock = attributes[_ATTRIBUTE] = RunningClock(loop)
    return clock


def running_time() -> float:
    """The time of the running event loop's clock; without a running loop, nothing can have been missed: monotonic time."""
    try:
        return running_clock().now()
    except RuntimeError:
        return time.monotonic()
