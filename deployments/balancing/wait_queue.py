"""The requests of one agent that wait at one gateway for a place on an instance: first come, first served.

`policies.limits.Queue` decides who is next; here is what waits (a future per request). A place that is granted is taken
in the same step, so that no newcomer gets between. Whoever gives up, in whatever way, leaves the line or gives the
place back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policies.base import Request
from policies.errors import Overloaded, SwiftClawError
from policies.wait_queue import Waiter, WaitQueue

if TYPE_CHECKING:
    from deployments.balancing.backend import Lease
    from deployments.balancing.pool import Pool


class NoCapacity(Exception):
    """Somebody could take the request, but has no place for it now."""


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """A request in the line. `lease`: given, and not fetched yet."""

    request: Request
    tried: Collection[str]
    future: asyncio.Future[Lease]
    waiter: Waiter[WaitingRequest] | None = field(default=None)


class AgentWaitQueue:
    """`len(line)` wait."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queue: WaitQueue[WaitingRequest] = WaitQueue(1)
        self._moving = False

    def __len__(self) -> int:
        return len(self._queue)

    def configure(self, max_waiting: int) -> None:
        self._queue.max_waiting = max_waiting

    def take(self, request: Request, tried: Collection[str], now: float) -> Lease | None:
        """A place at once, or None: wait. Raises SwiftClawError."""
        if len(self._queue) and self._queue.ahead(now):
            return None
        try:
            return self._pool.choose(request, tried, now)
        except NoCapacity:
            return None

    async def wait(
        self, request: Request, tried: Collection[str], timeout_s: float, before: WaitingRequest | None = None
    ) -> WaitingRequest:
        """Wait for a place: `fetch` it from what this returns. Raises Overloaded (or what became of the agent).

        `before`: this request's place turned out to be taken; it goes back to the front of the line, with its deadline.
        """
        now = time.monotonic()
        waiting = WaitingRequest(request, tried, asyncio.get_running_loop().create_future())
        if before is not None and before.waiter is not None:
            waiting.waiter = self._queue.rejoin(before.waiter, waiting)
        else:
            waiting.waiter = self._queue.join(now, timeout_s, waiting)
        if waiting.waiter is None:
            raise Overloaded(
                f"{len(self._queue)} requests wait for a place already",
                agent=self._pool.name,
                retry_after_s=self._queue.retry_after_s(now),
            )
        try:
            await waiting.future
        except BaseException:
            self._queue.leave(waiting.waiter)
            if waiting.future.done() and not waiting.future.cancelled() and waiting.future.exception() is None:
                waiting.future.result().release(None, time.monotonic())
            raise
        return waiting

    def move(self, now: float) -> None:
        """A place may have become free, or nobody may be left who could give one."""
        if not len(self._queue) or self._moving:
            return
        self._moving = True
        try:
            while self._pool.may_have_room(now) and (waiter := self._queue.grant(now)) is not None:
                if not self._give(waiter, now):
                    break
        finally:
            self._moving = False

    def _give(self, waiter: Waiter[WaitingRequest], now: float) -> bool:
        """False: there is no place after all."""
        waiting = waiter.wake
        if waiting.future.done():  # its client is gone, and it has not had time to leave
            return True
        try:
            waiting.future.set_result(self._pool.choose(waiting.request, waiting.tried, now))
        except NoCapacity:
            waiting.waiter = self._queue.rejoin(waiter, waiting)
            return False
        except SwiftClawError as error:
            waiting.future.set_exception(error)
        return True

    def expire(self, now: float) -> None:
        """Whoever has waited for too long is refused."""
        for waiter in self._queue.expire(now):
            if not waiter.wake.future.done():
                waiter.wake.future.set_exception(
                    Overloaded(
                        "no instance had a place for the request in time",
                        agent=self._pool.name,
                        retry_after_s=self._queue.retry_after_s(now),
                    )
                )

    def dismiss(self, error: SwiftClawError) -> None:
        """Everybody is refused."""
        while (waiter := self._queue.grant(0.0)) is not None:
            if not waiter.wake.future.done():
                waiter.wake.future.set_exception(error)
