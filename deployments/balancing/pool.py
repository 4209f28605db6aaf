"""One agent at one gateway: which instances may take a request, and the choice among them. All sync.

Eligibility is decided here, once, before any strategy: health and drain (from the Controller), the breaker, capacity, and
the instances that this request has tried already. A strategy sees what is left. The properties of one instance that these
decisions are made of stand on `Backend` (available = in service, breaker allows, not suspect).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from random import Random

from cluster.instance_state import EJECTED, STOPPED, UNHEALTHY
from cluster.messages import AgentView, BreakerReport, Member
from deployments.balancing.backend import Backend, Lease
from deployments.balancing.breakers import Breakers
from deployments.balancing.lost_homes import LostHomes
from deployments.balancing.session_placement import SessionPlacement
from deployments.balancing.version_router import VersionRouter
from deployments.balancing.wait_queue import AgentWaitQueue, NoCapacity
from policies.base import Instance, Options, Request
from policies.candidates import LARGE, Candidates, Group
from policies.chooser import Chooser
from policies.errors import CLIENT_CLOSED_REQUEST, CircuitOpen, NoHealthyInstance, SwiftClawError
from policies.lifecycle.slow_start import warm_weights
from policies.load.load_view import LoadView
from policies.load.slowness import Slowness
from policies.regions.distance import Distances
from policies.retry import Budget
from policies.sessions.homes import SessionHome
from policies.sessions.session_token import Token, Tokens
from policies.wait_queue import ANY
from policies.weighted import weights_of

FAILED = frozenset((UNHEALTHY, EJECTED))
REFRESH_S = 0.5  # how often weights and slowness are brought up to date
SUSPECT_S = 1.0  # an instance that refused a connection gets no request for this long, unless the Controller reports it healthy


class Pool:
    """The instances of one agent as this gateway sees them; the `LeaseOwner` of their leases."""

    def __init__(
        self, name: str, view: AgentView, rng: Random, distances: Distances, keys: Sequence[bytes], now: float
    ) -> None:
        self.name = name
        self.cookie = ""  # the name of its session cookie
        self._backends: dict[str, Backend] = {}  # by replica
        self._lost_homes = LostHomes()
        self.versions = VersionRouter(name, lambda: Chooser(view.settings.load_balancing.strategy, rng), rng)
        self._revision = 0
        self.rng = rng
        self.slowness = Slowness()
        self.loads = LoadView()
        self.breakers = Breakers(lambda backend: self.slowness.forget(backend.member.id))
        self.sessions: SessionPlacement | None = None  # None: no session affinity
        self.wait_queue = AgentWaitQueue(name, self.choose, self.may_have_capacity, self.lane_of)
        self.budget = Budget(view.settings.retry.budget_percent)
        self.retries = 0  # since the last observation
        self.unreachable: set[str] = set()  # replicas that refused a connection since the last observation
        self._was_ready = False  # since the agent was last at zero
        self.update(view, distances, keys, now)

    def __repr__(self) -> str:
        healthy = sum(backend.healthy for backend in self._by_id.values())
        active = sum(backend.tally.active for backend in self._by_id.values())
        counts = f"{healthy} of {len(self._by_id)} instances healthy, {active} requests in flight from here"
        return f"<Pool of {self.name}: {counts}, {len(self.wait_queue)} waiting>"

    def update(self, view: AgentView, distances: Distances, keys: Sequence[bytes], now: float) -> None:
        """Apply a new snapshot of the agent; the counts, turns, breakers and sessions of instances that stay are kept."""
        self.view, self.settings = view, view.settings
        balancing, limits = view.settings.load_balancing, view.settings.limits
        self.affinity = balancing.session_affinity if view.session_affinity else None
        self.tokens = Tokens(keys, self.affinity.ttl_s) if self.affinity else None
        self.versions.configure(
            balancing.strategy,
            Options(regions=balancing.regions, distances=distances),
            affinity=self.affinity is not None,
        )
        self.versions.update_share(view.versions)
        self.by_client = balancing.strategy == "geographic"
        self._by_slowness = balancing.strategy == "response-time"
        self.slowness.window_s = balancing.window_s
        self.budget.budget_percent = view.settings.retry.budget_percent
        self.wait_queue.configure(limits.max_connections)
        self._sync_members(view.members, limits.max_connections_per_instance)
        self._sync_sessions()
        self._limited_in_all = limits.max_connections < limits.max_connections_per_instance * len(self._everyone)
        self.breakers.configure(view.settings.circuit_breaker, view.settings.request_timeout_s, self._backends.values(), now)
        self._was_ready = self.ready or (self._was_ready and not self.at_zero)
        self._refresh_at = 0.0

    def _sync_members(self, members: Sequence[Member], capacity: int) -> None:
        before, self._backends = self._backends, {}
        for member in members:
            backend = before.get(member.replica)
            if backend is None:
                backend = Backend(self.name, member, self.loads)
                self.slowness.forget(member.id)
            backend.update(member, capacity)
            self._backends[member.replica] = backend
        for replica, backend in before.items():
            if replica not in self._backends:
                self.loads.forget(backend.instance)
                self._lost_homes.left(replica, backend.member.state)
        self._by_id = {backend.member.id: backend for backend in self._backends.values()}
        self._everyone = [backend.instance for backend in self._by_id.values()]
        self._suspects = any(backend.suspect_until > 0 for backend in self._by_id.values())
        self._reachable, self._is_reachable = Group(()), frozenset[Instance]()  # the same instances
        self._candidates_of = -1  # the count of breaker changes that `_reachable` was made at
        self._revision += 1

    def _sync_sessions(self) -> None:
        if self.affinity is None:
            self.sessions = None
            return
        if self.sessions is None:
            self.sessions = SessionPlacement(self.affinity.ttl_s, self._lost_homes)
        self.sessions.update(self.affinity.ttl_s, self._backends)

    def backends(self) -> Collection[Backend]:
        return self._backends.values()

    @property
    def ready(self) -> bool:
        """Whether some instance takes new requests, capacity aside."""
        return any(backend.healthy and not backend.instance.draining for backend in self._by_id.values())

    @property
    def at_zero(self) -> bool:
        """Whether the agent has no instance by design, or its first one is starting after that."""
        return self.view.may_be_none and not any(backend.member.state in FAILED for backend in self._by_id.values())

    @property
    def wait_timeout_s(self) -> float:
        """How long a request may wait now."""
        limits = self.settings.limits
        hold_s = limits.hold_when_none_s
        return limits.connection_timeout_s if hold_s is None or self.ready else hold_s

    @property
    def _may_wait_for_first(self) -> bool:
        """Whether requests wait for an instance that is starting: the first one does so, not what replaces failed instances,
        unless `holdWhenNone` is set."""
        is_first = not self._was_ready or self.settings.limits.hold_when_none_s is not None
        return self.view.coming and is_first and not self.ready and self.wait_timeout_s > 0

    # --- the choice -----------------------------------------------------------------------------------------------

    def choose(self, request: Request, tried: Collection[str], now: float) -> Lease:
        """A lease for the request. `tried`: ids of instances asked before.

        Raises NoCapacity, CircuitOpen, NoHealthyInstance.
        """
        if now >= self._refresh_at:
            self._refresh(now)
        self.breakers.refresh(now)
        if self.breakers.changed != self._candidates_of:
            self._rebuild_candidates(now)
        if not self._is_ready:  # a level panics only while some instance is healthy: with none, every request gets the reason
            raise self._why_unavailable(tried, now)
        self.loads.refresh(self._everyone, now)
        large = len(self._everyone) > LARGE
        if self._limited_in_all:
            in_all = self.loads.total if large else sum([instance.load for instance in self._everyone])
            if in_all >= self.settings.limits.max_connections:
                raise NoCapacity
        eligible = self._candidates(tried, now) if large else self._eligible(tried, now)
        home = None
        if self.sessions is not None and request.session is not None:
            home, request = self._at_home(self.sessions, request, tried, now)
        chosen = self.versions.choose(eligible, self._everyone, request, self._revision)
        if chosen is None:
            chosen = self._possibly_stale_full(request, tried, now)
        if chosen is None:
            raise self._why_unavailable(tried, now)
        lease = Lease(self, self._by_id[chosen.id], now, request.now)
        if self.sessions is not None and request.session is not None:
            self.sessions.settle(request.session, home, lease, now)
        return lease

    def _eligible(self, tried: Collection[str], now: float) -> list[Instance]:
        """`Backend.full` and `suspect` written out: a call for each instance would double the cost of a choice."""
        eligible = [instance for instance in self._reachable.members if instance.load < instance.capacity]
        if tried or self._suspects:
            eligible = [instance for instance in eligible if self._may_try(instance, tried, now)]
        return eligible

    def _candidates(self, tried: Collection[str], now: float) -> Candidates:
        """The same instances, without a look at each."""
        reachable = self._is_reachable
        if tried or self._suspects:
            return Candidates(
                self._reachable, lambda one: one.load < one.capacity and one in reachable and self._may_try(one, tried, now)
            )
        return Candidates(self._reachable, lambda one: one.load < one.capacity and one in reachable)

    def _at_home(
        self, sessions: SessionPlacement, request: Request, tried: Collection[str], now: float
    ) -> tuple[SessionHome | None, Request]:
        """The home of the request's session, and the request pinned to it. Raises NoCapacity: it waits for its home."""
        home = sessions.home_of(request, self._by_id.get(request.pin or ""), now)
        if home is None:
            return None, request
        backend = sessions.backend_of(home)
        may_try = backend is not None and self._may_try(backend.instance, tried, now)
        return home, sessions.pin(request, home, may_try=may_try, now=now)

    def _rebuild_candidates(self, now: float) -> None:
        """After a change of health or of a breaker: the instances that may be asked, and what the levels are made of."""
        self._candidates_of = self.breakers.changed
        self._revision += 1
        self._reachable = Group(
            backend.instance for backend in self._by_id.values() if backend.reachable and backend.breaker_allows(now)
        )
        self._is_reachable = frozenset(self._reachable.members)
        self._is_ready = self.ready

    def _may_try(self, instance: Instance, tried: Collection[str], now: float) -> bool:
        return instance.id not in tried and not self._by_id[instance.id].suspect(now)

    def _possibly_stale_full(self, request: Request, tried: Collection[str], now: float) -> Instance | None:
        """One of those that only other gateways' requests fill, by an old report: asking is the way to find out."""
        candidates = [
            instance
            for instance in self._reachable.members
            if self._by_id[instance.id].possibly_stale(now) and self._may_try(instance, tried, now)
        ]
        return self.versions.choose(candidates, self._everyone, request, self._revision) if candidates else None

    def may_have_capacity(self, now: float, lane: str = ANY) -> bool:
        """False: every instance is full, or the one that the lane names. True also when none of them can take the request
        at all: a waiting request then goes elsewhere, or gets the reason at once."""
        if not self.ready:
            return True
        if lane != ANY:
            home = self._by_id.get(lane)
            if home is None or not home.passes_checks or not home.breaker_allows(now):
                return True
            return home.instance.load < home.instance.capacity or home.possibly_stale(now)
        return any(instance.load < instance.capacity for instance in self._everyone) or any(
            backend.possibly_stale(now) for backend in self._by_id.values()
        )

    def _why_unavailable(self, tried: Collection[str], now: float) -> SwiftClawError | NoCapacity:
        """The reason why no instance can take the request."""
        candidates = [
            backend
            for backend in self._by_id.values()
            if backend.in_service and backend.instance.weight > 0 and self._may_try(backend.instance, tried, now)
        ]
        # There are three cases. An instance is only full: the request waits for it.
        if any(backend.breaker_allows(now) and backend.full for backend in candidates):
            return NoCapacity()
        # The rest have open breakers: the first probe may be sent in `wait_s`.
        wait_s = self.breakers.wait_s(candidates, now)
        if wait_s is not None:
            return CircuitOpen(
                f"the circuit breaker of every healthy instance of {self.name} is open",
                agent=self.name,
                retry_after_s=max(1.0, wait_s),
            )
        # Nothing is in service, but an instance is starting or will be started for this request: it waits.
        if not tried and self._may_wait_for_first:
            return NoCapacity()
        # Nothing is in service, or everything that is has been tried.
        reason = "no healthy instance of {} is available" if self._by_id else "{} has no instance; none is starting"
        return NoHealthyInstance(reason.format(self.name), agent=self.name, retry_after_s=1)

    def is_last(self, backend: Backend, tried: Collection[str]) -> bool:
        """Whether no other instance is left to try."""
        now = time.monotonic()
        others = (other for other in self._by_id.values() if other is not backend and other.member.id not in tried)
        return not any(other.available(now) for other in others)

    # --- sessions -------------------------------------------------------------------------------------------------

    def version_for(self, session: str | None, token: Token | None, *, fresh: bool = False) -> str | None:
        """The version for a new request: that of its session's home, if it has one."""
        home = self.sessions.homes.peek(session) if self.sessions is not None and session is not None else None
        pinned = home.version if home is not None else token.version if token is not None else None
        return self.versions.version_for(session, pinned, fresh=fresh)

    def remembers(self, session: str) -> bool:
        """Whether a gateway has seen a request of the session within its ttl."""
        return self.sessions is not None and self.sessions.homes.get(session, time.monotonic()) is not None

    def lane_of(self, request: Request) -> str:
        """Where the request waits for capacity: for one instance (its id), or ANY."""
        return ANY if self.sessions is None else self.sessions.lane_of(request)

    # --- what leases report (`LeaseOwner`) --------------------------------------------------------------------------

    def sent(self, backend: Backend, now: float) -> int | None:
        self.loads.sent(backend.instance)
        return self.breakers.sent(backend, now)

    def load_reported(self, backend: Backend, in_flight: int, now: float) -> None:
        self.loads.reported(backend.instance, in_flight, now)

    def judged(self, backend: Backend, ok: bool | None, now: float, generation: int) -> None:
        self.breakers.judge(backend, ok, now, generation)

    def released(self, lease: Lease, status: int | None, now: float) -> None:
        """Free the capacity, learn from the time that the answer took, and let the next waiting request have it."""
        instance = lease.backend.instance
        self.loads.done(instance)
        if status is not None and status != CLIENT_CLOSED_REQUEST:
            seconds = (lease.first_byte_at or now) - lease.started_at
            slowness = self.slowness.record(instance.id, lease.load_on_arrival, seconds, now, failed=status >= 500)
            if slowness is not None and self._by_slowness:
                instance.slowness = slowness
            if status < 500:
                self.loads.answered(now - lease.started_at)
        self.wait_queue.move(now)

    # --- what else is learned -----------------------------------------------------------------------------------------

    def mark_unreachable(self, backend: Backend, now: float) -> None:
        """The instance refused a connection: it gets no request for a moment, and the Controller gets a report."""
        self._suspect(backend, now)
        self.unreachable.add(backend.member.replica)

    def mark_stopping(self, backend: Backend, now: float) -> None:
        """The instance refused a request because it stops: it gets none until a snapshot states so, or for a moment."""
        self._suspect(backend, now)
        self._lost_homes.left(backend.member.replica, STOPPED)

    def _suspect(self, backend: Backend, now: float) -> None:
        backend.suspect_until = now + SUSPECT_S
        self._suspects = True

    def merge_breakers(self, reports: Mapping[str, BreakerReport], gateway: str, now: float) -> None:
        """Merge what other gateways report about the breakers of this agent's instances."""
        self.breakers.merge_remote(reports, gateway, self._backends, now)

    def tick(self, now: float) -> None:
        """Do what is due by time alone: overdue requests, expired waits; called several times a second."""
        self.breakers.overdue(self._backends.values(), now)
        if len(self.wait_queue):
            self.wait_queue.expire(now)
            self.wait_queue.move(now)

    def postpone(self, seconds: float, now: float) -> None:
        """Move the deadlines that `tick` enforces: this gateway has paused."""
        self.breakers.postpone(self._backends.values(), seconds, now)
        self.wait_queue.postpone(seconds)

    def _refresh(self, now: float) -> None:
        """Bring up to date what changes with time: weights during slow start, slowness, suspicions that have expired."""
        self._refresh_at = now + REFRESH_S
        balancing = self.settings.load_balancing
        weights = weights_of(balancing.weighted, self._by_id)
        if balancing.slow_start_s:
            ages = {name: backend.age_s(now) for name, backend in self._by_id.items()}
            weights = warm_weights(weights, ages, balancing.slow_start_s)
        ratios = self.slowness.all(now) if self._by_slowness else {}
        for instance in self._everyone:
            instance.weight = weights[instance.id]
            instance.slowness = ratios.get(instance.id, 1.0)
        self._suspects = any(backend.suspect(now) for backend in self._by_id.values())
