"""The requests of one agent that wait at one gateway for capacity on an instance: first come, first served.

`policies.wait_queue.WaitQueue` decides which request is next; this adds what the request awaits (a future). Granted capacity
is taken in the same step, so that no newcomer can take it first. A request that stops waiting, for any reason, leaves the
queue or gives its lease back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from deployments.balancing.backend import Lease
from policies.base import Request
from policies.errors import Overloaded, SwiftClawError
from policies.wait_queue import ANY, Waiter, WaitQueue

Choose = Callable[[Request, Collection[str], float], Lease]


class NoCapacity(Exception):
    """Every available instance is full."""


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """A request in the queue. `future`: its lease, once granted."""

    request: Request
    tried: Collection[str]
    future: asyncio.Future[Lease]
    waiter: Waiter[WaitingRequest] | None = field(default=None)


class AgentWaitQueue:
    """`len()` is the number of waiting requests.

    `choose` takes a lease for a request (Raises NoCapacity, or SwiftClawError); `may_have_capacity` is False when calling
    `choose` would be in vain; both by lane: `lane_of` names the instance that a request has to wait for, or ANY.
    """

    def __init__(
        self,
        agent: str,
        choose: Choose,
        may_have_capacity: Callable[[float, str], bool],
        lane_of: Callable[[Request], str] = lambda _: ANY,
    ) -> None:
        self._agent, self._choose, self._may_have_capacity, self._lane_of = agent, choose, may_have_capacity, lane_of
        self._queue: WaitQueue[WaitingRequest] = WaitQueue(1)
        self._moving = False

    def __len__(self) -> int:
        return len(self._queue)

    def __repr__(self) -> str:
        return f"<AgentWaitQueue of {self._agent}: {len(self._queue)} of {self._queue.max_waiting} requests waiting>"

    def configure(self, max_waiting: int) -> None:
        self._queue.max_waiting = max_waiting

    def take(self, request: Request, tried: Collection[str], now: float) -> Lease | None:
        """A lease at once, or None: the request has to wait. Raises SwiftClawError."""
        if len(self._queue) and self._queue.ahead(now, {ANY, self._lane_of(request)}):
            return None
        try:
            return self._choose(request, tried, now)
        except NoCapacity:
            return None

    def enter(
        self, request: Request, tried: Collection[str], timeout_s: float, before: WaitingRequest | None = None
    ) -> WaitingRequest:
        """Wait for capacity; the future's result is the lease, or raises Overloaded or why the agent can no longer answer.

        `before`: the instance that this request was granted refused it as full; it returns to the front of the queue with
        its deadline. Raises Overloaded.
        """
        now = time.monotonic()
        waiting = WaitingRequest(request, tried, asyncio.get_running_loop().create_future())
        if before is not None and before.waiter is not None:
            waiting.waiter = self._queue.rejoin(before.waiter, waiting)
        else:
            waiting.waiter = self._queue.join(now, timeout_s, waiting, self._lane_of(request))
        if waiting.waiter is None:
            raise self._overloaded(f"the wait queue is full ({len(self._queue)} requests)", now)
        return waiting

    async def wait(
        self, request: Request, tried: Collection[str], timeout_s: float, before: WaitingRequest | None = None
    ) -> WaitingRequest:
        """`enter`, and wait. Raises Overloaded, or why the agent can no longer answer."""
        waiting = self.enter(request, tried, timeout_s, before)
        try:
            await waiting.future
        except BaseException:
            self.leave(waiting)
            raise
        return waiting

    def leave(self, waiting: WaitingRequest) -> None:
        """The request no longer waits. A lease that it has been granted already, and did not take, is given back."""
        if waiting.waiter is not None:
            self._queue.leave(waiting.waiter)
        future = waiting.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            future.result().release(None, time.monotonic())

    def move(self, now: float) -> None:
        """Grant what capacity there is; called whenever some may have been freed, or the last available instance lost."""
        if not len(self._queue) or self._moving:
            return
        self._moving = True
        try:
            lanes = {lane for lane in self._queue.lanes if self._may_have_capacity(now, lane)}
            while lanes and (waiter := self._queue.grant(now, lanes)) is not None:
                if not self._give(waiter, now):
                    lanes.discard(waiter.lane)
                lanes = {lane for lane in lanes if self._may_have_capacity(now, lane)}
        finally:
            self._moving = False

    def _give(self, waiter: Waiter[WaitingRequest], now: float) -> bool:
        """False: there is no capacity after all."""
        waiting = waiter.wake
        if waiting.future.done():  # its client has disconnected, and its task has not run since
            return True
        try:
            waiting.future.set_result(self._choose(waiting.request, waiting.tried, now))
        except NoCapacity:
            waiting.waiter = self._queue.rejoin(waiter, waiting)
            return False
        except SwiftClawError as error:
            waiting.future.set_exception(error)
        return True

    def expire(self, now: float) -> None:
        """Refuse the requests that have waited too long."""
        for waiter in self._queue.expire(now):
            if not waiter.wake.future.done():
                waiter.wake.future.set_exception(self._overloaded("timed out waiting for a free instance", now))

    def postpone(self, seconds: float) -> None:
        """Give every request this much longer: this gateway has paused."""
        self._queue.postpone(seconds)

    def dismiss(self, error: SwiftClawError) -> None:
        """Refuse every waiting request."""
        while (waiter := self._queue.grant(0.0, list(self._queue.lanes))) is not None:
            if not waiter.wake.future.done():
                waiter.wake.future.set_exception(error)

    def _overloaded(self, message: str, now: float) -> Overloaded:
        return Overloaded(message, agent=self._agent, retry_after_s=self._queue.retry_after_s(now))
