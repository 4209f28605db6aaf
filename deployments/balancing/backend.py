"""One instance as one gateway sees it (`Backend`), and the count of one request on it (`Lease`).

All sync. A lease is taken together with the choice, with no await between the two, and released once: when the last byte of
the answer has been sent, or when the client or the instance has gone. The release also gives the instance's breaker the
outcome of the request, unless it was given earlier. Not for deciding who takes a request: that is the pool
(deployments/balancing/pool.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cluster.instance_state import DRAINING, EJECTED, HEALTHY, STARTING, STOPPED
from cluster.messages import Member
from cluster.telemetry.tally import Key, Tally
from policies.base import Instance
from policies.breaker import Breaker
from policies.load.load_view import LoadView

STALE_S = 0.5  # a load report that shows an instance full is believed for this long


class LoadReport(NamedTuple):
    """An instance's own load, reported with every answer."""

    in_flight: int  # the answered request included
    on_arrival: int  # when that request arrived, itself not counted


class Backend:
    """One instance, and what this gateway has counted and learned about it. `loads`: the load view of its agent."""

    __slots__ = (
        "_loads",
        "_started_at",
        "awaiting",
        "breaker",
        "instance",
        "key",
        "member",
        "overdue",
        "passes_checks",
        "response_headers",
        "suspect_until",
        "tally",
    )

    def __init__(self, agent: str, member: Member, loads: LoadView) -> None:
        self._loads = loads
        self._started_at: float | None = None  # in monotonic seconds
        self.member = member
        self.key: Key = (agent, member.version, member.region, member.id)
        self.tally = Tally()
        self.suspect_until = 0.0
        self.instance = Instance(id=member.id, region=member.region)
        self.breaker: Breaker | None = None  # None: switched off
        self.awaiting: dict[Lease, None] = {}  # requests sent whose answer has not started, oldest first
        self.overdue: dict[Lease, None] = {}  # of those, the ones past the breaker's timeout
        self.passes_checks = False
        self.response_headers = (
            (b"x-swiftclaw-instance", member.id.encode()),
            (b"x-swiftclaw-version", member.version.encode()),
            (b"x-swiftclaw-region", member.region.encode()),
        )

    def __repr__(self) -> str:
        state: list[str] = [self.member.state]
        if self.breaker is not None:
            state.append(f"breaker {self.breaker.state}")
        if self.suspect_until:
            state.append(f"suspect until {self.suspect_until:g}")
        load = f"load {self.instance.load:g} of {self.instance.capacity}"
        return f"<Backend {self.member.id} {', '.join(state)}; {self.tally.active} in flight from here, {load}>"

    def update(self, member: Member, capacity: int) -> None:
        """Apply the instance's entry in a new snapshot."""
        self.member = member
        instance = self.instance
        instance.version, instance.priority = member.version, member.priority
        self.passes_checks = member.state in (HEALTHY, DRAINING)
        instance.checked = member.state != STARTING
        instance.draining = member.state in (DRAINING, STOPPED)  # still part of its level, only on its way out
        instance.capacity = capacity
        if self.passes_checks:
            self.suspect_until = 0.0

    def age_s(self, now: float) -> float:
        """Seconds since its process started. The time of day is read once: a clock that is set later changes no age."""
        if self._started_at is None:
            self._started_at = now - max(0.0, time.time() - self.member.started_at)
        return now - self._started_at

    @property
    def reachable(self) -> bool:
        """Something listens there, as far as the Controller knows; its health checks may fail all the same."""
        return self.member.state not in (EJECTED, STOPPED)

    @property
    def healthy(self) -> bool:
        """Its health checks pass and its breaker lets requests through."""
        return self.instance.healthy

    @property
    def full(self) -> bool:
        return self.instance.load >= self.instance.capacity

    @property
    def in_service(self) -> bool:
        """Its health checks pass and it is not draining: it takes new requests if its breaker allows."""
        return self.passes_checks and not self.instance.draining

    def suspect(self, now: float) -> bool:
        """It refused a connection a moment ago."""
        return self.suspect_until > now

    def breaker_allows(self, now: float) -> bool:
        return self.breaker is None or self.breaker.may(now)

    def available(self, now: float) -> bool:
        """It takes new requests, capacity aside."""
        return self.in_service and self.breaker_allows(now) and not self.suspect(now)

    def possibly_stale(self, now: float) -> bool:
        """It is full only with the requests of other gateways, and the report of them is old: it may have capacity again."""
        loads, instance = self._loads, self.instance
        return instance.load >= instance.capacity > loads.own(instance) and now - loads.reported_at(instance) > STALE_S

    def is_probe(self, generation: int | None) -> bool:
        """Whether the request of this breaker generation is the probe of a half-open breaker."""
        breaker = self.breaker
        return breaker is not None and breaker.state == "half-open" and breaker.generation == generation


class LeaseOwner(Protocol):
    """What a lease reports to: the pool that granted it."""

    def sent(self, backend: Backend, now: float) -> int | None:
        """Count a request; returns the breaker generation that its outcome belongs to, None if no breaker wants it."""

    def load_reported(self, backend: Backend, in_flight: int, now: float) -> None:
        """The instance's own count of its requests in flight, from all gateways."""

    def judged(self, backend: Backend, ok: bool | None, now: float, generation: int) -> None:
        """The outcome of a request for the breaker; `ok` None: neither a success nor a failure."""

    def released(self, lease: Lease, status: int | None, now: float) -> None:
        """The request is over; `status` None: it goes on at another instance."""


class Lease:
    """One request on one instance. `arrived_at`: when the gateway received the request, which may have waited since."""

    __slots__ = (
        "_counted",
        "_generation",
        "_open",
        "_owner",
        "_undecided",
        "arrived_at",
        "backend",
        "first_byte_at",
        "load_on_arrival",
        "move_elsewhere",
        "session_moved",
        "session_placed",
        "started_at",
    )

    def __init__(self, owner: LeaseOwner, backend: Backend, now: float, arrived_at: float) -> None:
        self._owner, self.backend, self.started_at, self.arrived_at = owner, backend, now, arrived_at
        self.first_byte_at: float | None = None
        self.move_elsewhere: Callable[[], bool] | None = None  # called when the breaker opens; True: the request moves
        self.session_moved = False  # the request's session has lived elsewhere until now
        self.session_placed = False  # its home is new, and the other gateways may not know it yet
        self.load_on_arrival: float = backend.instance.load
        self._open = True
        self._counted = False
        self._generation = owner.sent(backend, now)
        self._undecided = self._generation is not None
        backend.tally.active += 1
        backend.awaiting[self] = None

    def __repr__(self) -> str:
        if not self._open:
            state = "released"
        elif self in self.backend.awaiting:
            state = "waiting for the answer"
        elif self in self.backend.overdue:
            state = "overdue"
        else:
            state = "receiving the answer"
        return f"<Lease on {self.backend.member.id} since {self.started_at:g}, {state}>"

    def answered(self, now: float, report: LoadReport | None, *, failed: bool = False) -> None:
        """The head of the answer has arrived, with the instance's own load report if it sent one."""
        self.first_byte_at = now
        self._stop_awaiting()
        if report is not None:
            self.load_on_arrival = report.on_arrival
            self._owner.load_reported(self.backend, report.in_flight, now)
        if failed:
            self.judge(False, now)
        elif self._undecided and self.backend.is_probe(self._generation):
            self.judge(True, now)  # a stream may take minutes to end: its first byte is enough

    def mark_overdue(self, now: float) -> None:
        """The answer has not started within the breaker's timeout."""
        del self.backend.awaiting[self]
        self.backend.overdue[self] = None
        self.judge(False, now)

    def refused_full(self, now: float, report: LoadReport | None) -> None:
        """The instance refused the request because it is full."""
        in_flight = report.in_flight if report is not None else self.backend.instance.capacity
        self._owner.load_reported(self.backend, in_flight + 1, now)  # this request is counted here until it is released

    def judge(self, ok: bool | None, now: float) -> None:
        """Give the breaker the outcome of this request, once; None: neither a success nor a failure."""
        if self._undecided and self._generation is not None:
            self._undecided = False
            self._owner.judged(self.backend, ok, now, self._generation)

    def count(self, status: int, now: float) -> None:
        """Count the request, once; called before the last byte is sent, so that no client has an answer that is not counted."""
        if self._open and not self._counted:
            self._counted = True
            first_byte_s = None if self.first_byte_at is None else self.first_byte_at - self.arrived_at
            self.backend.tally.add(status, now - self.arrived_at, first_byte_s)

    def release(self, status: int | None, now: float, ok: bool | None = None) -> None:
        """End the lease. `status` None: the request goes on elsewhere and is not counted here. `ok`: see `judge`."""
        if not self._open:
            return
        if status is not None:
            self.count(status, now)
        self._open = False
        self.backend.tally.active -= 1
        self._stop_awaiting()
        self.judge(ok, now)
        self._owner.released(self, status, now)

    def _stop_awaiting(self) -> None:
        self.backend.awaiting.pop(self, None)
        self.backend.overdue.pop(self, None)
