"""One instance as one gateway knows it, and one request's place on it.

All sync. A `Lease` is the count of one request on one instance; it is taken with the choice (no await between) and
released once, when the answer's last byte is out or its sender is gone, in whatever way. With the release goes a
verdict for the instance's breaker, unless it was given before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cluster.messages import Member
from cluster.telemetry.tally import Key, Tally
from policies.base import Instance
from policies.breaker import Breaker
from policies.errors import CLIENT_CLOSED_REQUEST

if TYPE_CHECKING:
    from deployments.balancing.pool import Pool


class LoadReport(NamedTuple):
    """What an instance says of itself with every answer."""

    in_flight: int  # the answered request included
    on_arrival: int  # when that request came in, itself not counted


class Backend:
    """One instance, its counts here and what it said of itself."""

    __slots__ = ("awaiting", "breaker", "instance", "key", "late", "member", "suspect_until", "tally", "told", "well")

    def __init__(self, agent: str, member: Member) -> None:
        self.member = member
        self.key: Key = (agent, member.version, member.region, member.id)
        self.tally = Tally()
        self.suspect_until = 0.0
        self.instance = Instance(id=member.id, region=member.region)
        self.breaker: Breaker | None = None  # None: switched off
        self.awaiting: dict[Lease, None] = {}  # sent, and no head of an answer yet; the oldest first
        self.late: dict[Lease, None] = {}  # still none, after the breaker's timeout
        self.well = False  # its checks pass
        self.told = (  # what clients are told of it
            (b"x-swiftclaw-instance", member.id.encode()),
            (b"x-swiftclaw-version", member.version.encode()),
            (b"x-swiftclaw-region", member.region.encode()),
        )

    def describe(self, member: Member, capacity: int) -> None:
        self.member = member
        instance = self.instance
        instance.version, instance.priority = member.version, member.priority
        self.well = member.state in ("healthy", "draining")
        instance.checked = member.state != "starting"
        instance.draining = member.state in ("draining", "stopped")  # not missing from its level, only on its way out
        instance.capacity = capacity
        if self.well:
            self.suspect_until = 0.0

    @property
    def answers(self) -> bool:
        return self.member.state not in ("ejected", "stopped")

    def passes(self, now: float) -> bool:
        """Whether its breaker lets a request through."""
        return self.breaker is None or self.breaker.may(now)

    def __repr__(self) -> str:
        circuit = "" if self.breaker is None else f", {self.breaker.state}"
        return f"<{self.member.id} {self.member.state}{circuit}, {self.tally.active} in flight here, load {self.instance.load}>"


class Lease:
    """One request's place on one instance. `arrived_at`: when the gateway got the request; it may have waited since."""

    __slots__ = (
        "_arrival",
        "_counted",
        "_generation",
        "_open",
        "_undecided",
        "arrived_at",
        "backend",
        "first_byte_at",
        "goes_elsewhere",
        "pool",
        "started_at",
    )

    def __init__(self, pool: Pool, backend: Backend, now: float, arrived_at: float) -> None:
        self.pool, self.backend, self.started_at, self.arrived_at = pool, backend, now, arrived_at
        self.first_byte_at: float | None = None
        self.goes_elsewhere: Callable[[], bool] | None = None  # asked when the instance has been given up; True: it does
        self._arrival = backend.instance.load
        self._open = True
        self._counted = False
        self._generation = pool.circuits.sent(backend, now)
        self._undecided = self._generation is not None
        backend.tally.active += 1
        backend.awaiting[self] = None
        pool.loads.sent(backend.instance)

    def heard(self, now: float, report: LoadReport | None, *, failed: bool = False) -> None:
        """The head of the answer is here, with the instance's own report of its load if there is one."""
        self.first_byte_at = now
        self._not_awaited()
        if report is not None:
            self._arrival = report.on_arrival
            self.pool.loads.reported(self.backend.instance, report.in_flight, now)
        if failed:
            self.judge(False, now)
        elif self._undecided and self.pool.circuits.is_probe(self.backend, self._generation):
            self.judge(True, now)  # a stream may take minutes to end: its first byte is enough

    def overdue(self, now: float) -> None:
        """The breaker's time for it is up."""
        del self.backend.awaiting[self]
        self.backend.late[self] = None
        self.judge(False, now)

    def _not_awaited(self) -> None:
        self.backend.awaiting.pop(self, None)
        self.backend.late.pop(self, None)

    def full(self, now: float, report: LoadReport | None) -> None:
        """It had no place for this request after all."""
        in_flight = report.in_flight if report is not None else self.backend.instance.capacity
        self.pool.loads.reported(self.backend.instance, in_flight + 1, now)  # this one is counted here until it is released

    def judge(self, ok: bool | None, now: float) -> None:
        """What this request says of its instance, once; None: nothing."""
        if self._undecided and self._generation is not None:
            self._undecided = False
            self.pool.circuits.judge(self.backend, ok, now, self._generation)

    def ends(self, code: int, now: float) -> None:
        """The last of the answer is about to go out: counted before it does, so that no client has one that is not counted."""
        if self._open and not self._counted:
            self._counted = True
            first_byte_s = None if self.first_byte_at is None else self.first_byte_at - self.arrived_at
            self.backend.tally.add(code, now - self.arrived_at, first_byte_s)

    def release(self, code: int | None, now: float, ok: bool | None = None) -> None:
        """`code` None: not to be counted (the request goes on elsewhere). `ok`: see `judge`."""
        if not self._open:
            return
        if code is not None:
            self.ends(code, now)
        self._open = False
        instance = self.backend.instance
        self.backend.tally.active -= 1
        self._not_awaited()
        self.pool.loads.done(instance)
        self.judge(ok, now)
        if code is not None and code != CLIENT_CLOSED_REQUEST:
            seconds = (self.first_byte_at or now) - self.started_at
            self.pool.answered(instance, self._arrival, seconds, now, failed=code >= 500)
            if code < 500:
                self.pool.loads.answered(now - self.started_at)
        self.pool.line.move(now)
