"""Models of instances: queueing, processor sharing, failing fast, freezing.

A server has no clock: it receives `now` and returns when its next request will be done. `None`: no new completion until
another event.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Protocol

Done = tuple[float, int]  # when, which request


class Server(Protocol):
    in_flight: int
    speed: float

    def arrive(self, now: float, request: int, work: float) -> Done | None: ...

    def finish(self, now: float, request: int) -> Done | None:
        """`request` is done. Answers the next completion to expect, if it is news."""

    def is_current(self, now: float, request: int) -> bool:
        """Whether a completion that was announced still holds."""


class Queueing:
    """`slots` requests at a time at full speed, the others wait first-come-first-served."""

    __slots__ = ("_busy", "_waiting", "in_flight", "slots", "speed")

    def __init__(self, speed: float = 1.0, slots: int = 1) -> None:
        self.speed, self.slots = speed, slots
        self.in_flight = 0
        self._busy = 0
        self._waiting: deque[tuple[int, float]] = deque()

    def arrive(self, now: float, request: int, work: float) -> Done | None:
        self.in_flight += 1
        if self._busy == self.slots:
            self._waiting.append((request, work))
            return None
        self._busy += 1
        return now + work / self.speed, request

    def finish(self, now: float, request: int) -> Done | None:
        self.in_flight -= 1
        if not self._waiting:
            self._busy -= 1
            return None
        follower, work = self._waiting.popleft()
        return now + work / self.speed, follower

    def is_current(self, now: float, request: int) -> bool:
        return True


class Sharing:
    """Processor sharing among all that are present. Kept in attained service, which grows at speed / in_flight."""

    __slots__ = ("_announced", "_at", "_attained", "_present", "in_flight", "speed")

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.in_flight = 0
        self._attained = 0.0
        self._at = 0.0
        self._present: list[tuple[float, int]] = []  # heap of (attained service at which it is done, request)
        self._announced: Done | None = None

    def arrive(self, now: float, request: int, work: float) -> Done | None:
        self._advance(now)
        self.in_flight += 1
        heappush(self._present, (self._attained + work, request))
        return self._next(now)

    def finish(self, now: float, request: int) -> Done | None:
        self._advance(now)
        heappop(self._present)
        self.in_flight -= 1
        return self._next(now)

    def is_current(self, now: float, request: int) -> bool:
        return self._announced == (now, request)

    def _advance(self, now: float) -> None:
        if self.in_flight:
            self._attained += (now - self._at) * self.speed / self.in_flight
        self._at = now

    def _next(self, now: float) -> Done | None:
        if not self._present:
            self._announced = None
            return None
        target, request = self._present[0]
        left = max(0.0, target - self._attained)
        self._announced = (now + left * self.in_flight / self.speed, request)
        return self._announced


class FailingFast:
    """Answers every request with an error, at once."""

    __slots__ = ("_takes_s", "in_flight", "speed")

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s
        self.speed = 1.0
        self.in_flight = 0

    def arrive(self, now: float, request: int, work: float) -> Done | None:
        self.in_flight += 1
        return now + self._takes_s, request

    def finish(self, now: float, request: int) -> Done | None:
        self.in_flight -= 1
        return None

    def is_current(self, now: float, request: int) -> bool:
        return True


class Freezing:
    """Another server until `at`; from then on it takes requests and never answers."""

    __slots__ = ("_at", "_server", "speed")

    def __init__(self, server: Server, at: float) -> None:
        self._server, self._at = server, at
        self.speed = server.speed

    @property
    def in_flight(self) -> int:
        return self._server.in_flight

    @in_flight.setter
    def in_flight(self, value: int) -> None:
        self._server.in_flight = value

    def arrive(self, now: float, request: int, work: float) -> Done | None:
        return self._unless_frozen(self._server.arrive(now, request, work))

    def finish(self, now: float, request: int) -> Done | None:
        return self._unless_frozen(self._server.finish(now, request))

    def is_current(self, now: float, request: int) -> bool:
        return self._server.is_current(now, request)

    def _unless_frozen(self, done: Done | None) -> Done | None:
        return done if done is not None and done[0] < self._at else None
