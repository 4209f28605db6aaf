"""Which request is next when every instance is full?

One queue per agent and gateway: first come, first served, at most `max_waiting` long, each request with its own deadline.
A request waits in a lane: for any instance, or for one, the home of its session. Free capacity goes to the earliest request
that can use it, so none waits behind a request that waits for another instance. Every operation is O(1) or O(log n). It
decides and never waits: `wake` is whatever the caller awaits (a future).
Not for the limit itself: an instance refuses above its own limit, whatever the gateways believe.
Source: httpcore's connection pool (decide in sync code); Release It! on bounded queues.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

ANY = ""  # the lane of requests that any instance can answer
KEPT_GAPS = 64  # newest times between two requests that left the queue with capacity
UNKNOWN_S = 5.0  # Retry-After while no request has left the queue yet
MIN_S, MAX_S = 1.0, 300.0  # of Retry-After


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """`ticket`: its number in the order of arrival."""

    ticket: int
    deadline: float
    lane: str
    wake: T
    waiting: bool = True


class WaitQueue(Generic[T]):
    """`max_waiting` may be changed at any time: requests that wait already stay."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._waiting = 0
        self._tickets = count()
        self._lanes: dict[str, OrderedDict[int, Waiter[T]]] = {}  # each by ticket, in order of arrival; none is empty
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []  # a heap; waiters that left are dropped late
        self._gaps: deque[float] = deque(maxlen=KEPT_GAPS)
        self._moved_at = 0.0  # when the queue last moved, or began

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        return f"<WaitQueue {self._waiting} of {self.max_waiting} waiting>"

    def join(self, now: float, timeout_s: float, wake: T, lane: str = ANY) -> Waiter[T] | None:
        """A place at the end of the queue, or None: it is full."""
        if self._waiting >= self.max_waiting:
            return None
        if not self._waiting:
            self._moved_at = now
        waiter = Waiter(next(self._tickets), now + timeout_s, lane, wake)
        self._lanes.setdefault(lane, OrderedDict())[waiter.ticket] = waiter
        self._waiting += 1
        heappush(self._deadlines, (waiter.deadline, waiter.ticket, waiter))
        return waiter

    def leave(self, waiter: Waiter[T]) -> None:
        """It waits no longer, for whatever reason; no effect on a waiter that has left already."""
        if not waiter.waiting:
            return
        waiter.waiting = False
        self._waiting -= 1
        lane = self._lanes[waiter.lane]
        del lane[waiter.ticket]
        if not lane:
            del self._lanes[waiter.lane]
        if len(self._deadlines) > 2 * self._waiting + KEPT_GAPS:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapify(self._deadlines)

    @property
    def lanes(self) -> Collection[str]:
        """The lanes in which requests wait."""
        return self._lanes.keys()

    def ahead(self, now: float, lanes: Iterable[str] = (ANY,)) -> bool:
        """Whether a request waits in these lanes: then a new one may not take the capacity that it could use."""
        return self._first(now, lanes) is not None

    def grant(self, now: float, lanes: Iterable[str] = (ANY,)) -> Waiter[T] | None:
        """The next request for free capacity, taken out of the queue. `lanes`: the ones that can use it.

        Take the capacity in its name before anything else runs, or a new request will.
        """
        first = self._first(now, lanes)
        if first is None:
            return None
        self._gaps.append(max(0.0, now - self._moved_at))
        self._moved_at = now
        self.leave(first)
        return first

    def rejoin(self, waiter: Waiter[T], wake: T) -> Waiter[T]:
        """The capacity that it was granted was none: back to the front of its lane, with its deadline."""
        again = Waiter(waiter.ticket, waiter.deadline, waiter.lane, wake)
        lane = self._lanes.setdefault(waiter.lane, OrderedDict())
        lane[again.ticket] = again
        lane.move_to_end(again.ticket, last=False)
        self._waiting += 1
        heappush(self._deadlines, (again.deadline, next(self._tickets), again))
        if self._gaps:
            self._gaps.pop()  # the queue has not moved
        return again

    def expire(self, now: float) -> list[Waiter[T]]:
        """The waiters whose deadline has passed, taken out of the queue."""
        expired = []
        while (earliest := self.deadline()) is not None and earliest <= now:
            waiter = heappop(self._deadlines)[2]
            self.leave(waiter)
            expired.append(waiter)
        return expired

    def postpone(self, seconds: float) -> None:
        """Give every waiter this much longer: its gateway has paused."""
        self._moved_at += seconds
        for lane in self._lanes.values():
            for waiter in lane.values():
                waiter.deadline += seconds
        self._deadlines = [(waiter.deadline, ticket, waiter) for _, ticket, waiter in self._deadlines if waiter.waiting]
        heapify(self._deadlines)

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def retry_after_s(self, now: float) -> float:
        """How long the queue as it is will take, at the pace at which it moved lately."""
        if not self._gaps:
            return UNKNOWN_S
        moving_s, moves = sum(self._gaps), len(self._gaps)
        standing_s = max(0.0, now - self._moved_at) if self._waiting else 0.0
        per_request_s = max(moving_s / moves, (moving_s + standing_s) / (moves + 1))
        return min(MAX_S, max(MIN_S, (self._waiting + 1) * per_request_s))

    def _first(self, now: float, lanes: Iterable[str]) -> Waiter[T] | None:
        """The earliest waiter of these lanes that is still in time; passes over those that `expire` has yet to collect."""
        earliest: Waiter[T] | None = None
        for name in lanes:
            for waiter in self._lanes.get(name, {}).values():
                if waiter.deadline > now:
                    if earliest is None or waiter.ticket < earliest.ticket:
                        earliest = waiter
                    break
        return earliest
