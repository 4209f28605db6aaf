"""Who is next, when every place is taken?

One line of waiting requests per agent: first come, first served, at most `max_waiting` long, each with its own
deadline. A waiter stands in a lane that names the places of use to it (any, one instance, one version): a free place
goes to the earliest of those it suits, so nobody waits behind one who waits for something else. Every operation is
O(1) or O(log n). It decides and never waits: `wake` is whatever the caller awaits (a future).
Not for the cap itself: an instance refuses above its own limit, whatever the gateways believe.
Source: httpcore's connection pool (decide in sync code); Release It! on bounded queues.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

ANY = ""  # the lane of those whom every place suits
KEPT_GAPS = 64  # newest times between two who left the line for a place
UNKNOWN_S = 5.0  # Retry-After while nobody has left the line yet
LEAST_S, MOST_S = 1.0, 300.0


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """`ticket`: its number in the order of arrival."""

    ticket: int
    deadline: float
    lane: str
    wake: T
    waiting: bool = True


class WaitQueue(Generic[T]):
    """`max_waiting` may be changed at any time: nobody who waits is sent away for it."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._waiting = 0
        self._tickets = count()
        self._lanes: dict[str, OrderedDict[int, Waiter[T]]] = {}  # each in order of arrival, none empty
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []  # a heap; those who left are dropped late
        self._gaps: deque[float] = deque(maxlen=KEPT_GAPS)
        self._moved = 0.0  # when the line last moved, or began

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        return f"<WaitQueue {self._waiting} of {self.max_waiting} waiting>"

    def join(self, now: float, timeout_s: float, wake: T, lane: str = ANY) -> Waiter[T] | None:
        """A place at the end of the line, or None: it is full."""
        if self._waiting >= self.max_waiting:
            return None
        if self._waiting == 0:
            self._moved = now
        waiter = Waiter(next(self._tickets), now + timeout_s, lane, wake)
        self._lanes.setdefault(lane, OrderedDict())[waiter.ticket] = waiter
        heappush(self._deadlines, (waiter.deadline, waiter.ticket, waiter))
        self._waiting += 1
        return waiter

    def leave(self, waiter: Waiter[T]) -> None:
        """It waits no more, for whatever reason; harmless for one that has left already."""
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

    def ahead(self, now: float, lanes: Iterable[str] = (ANY,)) -> bool:
        """Whether somebody waits whom a place in these lanes suits: then a newcomer may not take it."""
        return self._first(now, lanes) is not None

    def grant(self, now: float, lanes: Iterable[str] = (ANY,)) -> Waiter[T] | None:
        """The next one for a free place, taken out of the line. `lanes`: the names under which the place is of use.

        Take the place in its name before anything else runs, or a newcomer will.
        """
        first = self._first(now, lanes)
        if first is None:
            return None
        self._gaps.append(max(0.0, now - self._moved))
        self._moved = now
        self.leave(first)
        return first

    def rejoin(self, waiter: Waiter[T], wake: T) -> Waiter[T]:
        """The place that it was granted was none: back to the front of its lane, with the deadline it had."""
        again = Waiter(waiter.ticket, waiter.deadline, waiter.lane, wake)
        lane = self._lanes.setdefault(waiter.lane, OrderedDict())
        lane[again.ticket] = again
        lane.move_to_end(again.ticket, last=False)
        heappush(self._deadlines, (again.deadline, next(self._tickets), again))
        self._waiting += 1
        if self._gaps:
            self._gaps.pop()  # the line has not moved
        return again

    def expire(self, now: float) -> list[Waiter[T]]:
        """Those whose deadline has come, taken out of the line."""
        late = []
        while (earliest := self.deadline()) is not None and earliest <= now:
            waiter = heappop(self._deadlines)[2]
            self.leave(waiter)
            late.append(waiter)
        return late

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def retry_after_s(self, now: float) -> float:
        """How long the line as it is will take, by the pace at which it moved lately."""
        if not self._gaps:
            return UNKNOWN_S
        moving_s, moves = sum(self._gaps), len(self._gaps)
        standing_s = max(0.0, now - self._moved) if self._waiting else 0.0
        per_place_s = max(moving_s / moves, (moving_s + standing_s) / (moves + 1))
        return min(MOST_S, max(LEAST_S, (self._waiting + 1) * per_place_s))

    def _first(self, now: float, lanes: Iterable[str]) -> Waiter[T] | None:
        """The earliest in these lanes who is still in time; passes over those that `expire` has yet to collect."""
        found: Waiter[T] | None = None
        for name in lanes:
            for waiter in self._lanes.get(name, {}).values():
                if waiter.deadline > now:
                    if found is None or waiter.ticket < found.ticket:
                        found = waiter
                    break
        return found
