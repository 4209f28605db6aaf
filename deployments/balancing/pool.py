"""One agent at one gateway: who may take a request, and the choice itself. All sync.

Who may is decided here, once, before any strategy: health and drain (the Controller's word), the breaker, room, and
what this request has tried already. What a strategy sees is what is left.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from random import Random

from cluster.messages import AgentView, BreakerReport, Member
from deployments.balancing.backend import Backend, Lease
from deployments.balancing.breakers import Breakers
from deployments.balancing.version_router import VersionRouter
from deployments.balancing.wait_queue import AgentWaitQueue, NoCapacity
from policies.base import Instance, Options, Request
from policies.chooser import Chooser
from policies.errors import CircuitOpen, NoHealthyInstance, SwiftClawError
from policies.lifecycle.slow_start import warm_weights
from policies.load.distance import Distances
from policies.load.load_view import LoadView
from policies.load.slowness import Slowness
from policies.retry import Budget
from policies.sessions.session_token import Tokens
from policies.weighted import weights_of

REFRESH_S = 0.5  # how often weights and slowness are looked at
SUSPECT_S = 1.0  # one that refused a connection is left alone this long, unless the Controller says otherwise
DOUBT_S = 0.5  # that others fill an instance is believed this long; then it is asked, which costs it next to nothing


class Pool:
    """One agent."""

    def __init__(
        self, name: str, view: AgentView, rng: Random, distances: Distances, keys: Sequence[bytes], now: float
    ) -> None:
        self.name = name
        self._backends: dict[str, Backend] = {}  # by replica
        self.versions = self._chooser = VersionRouter(name, lambda: Chooser(view.settings.load_balancing.strategy, rng), rng)
        self._revision = 0
        self.rng = rng
        self.slowness = Slowness()
        self.loads = LoadView()
        self.circuits = Breakers(lambda backend: self.slowness.forget(backend.member.id))
        self.line = AgentWaitQueue(self)
        self.budget = Budget(view.settings.retry.budget_percent)
        self.retries = 0  # since they were last told
        self.describe(view, distances, keys, now)

    def describe(self, view: AgentView, distances: Distances, keys: Sequence[bytes], now: float) -> None:
        """Take over what is new; counts, turns, breakers and sessions of what stays are kept."""
        self.view, self.settings = view, view.settings
        balancing, limits = view.settings.load_balancing, view.settings.limits
        self.affinity = balancing.session_affinity if view.session_affinity else None
        self.tokens = Tokens(keys, self.affinity.ttl_s) if self.affinity else None
        self._chooser.configure(
            balancing.strategy,
            Options(regions=balancing.regions, distances=distances),
            self.affinity.ttl_s if self.affinity else None,
        )
        self.versions.share(view.versions)
        self.by_client = balancing.strategy == "geographic"
        self._by_slowness = balancing.strategy == "response-time"
        self.slowness.window_s = balancing.window_s
        self.budget.budget_percent = view.settings.retry.budget_percent
        self.line.configure(limits.max_connections)
        self._meet(view.members, limits.max_connections_per_instance)
        self._limited_in_all = limits.max_connections < limits.max_connections_per_instance * len(self._everyone)
        self.circuits.configure(view.settings.circuit_breaker, view.settings.request_timeout_s, self._backends.values(), now)
        self._refresh_at = 0.0

    def _meet(self, members: Sequence[Member], capacity: int) -> None:
        known, self._backends = self._backends, {}
        for member in members:
            backend = known.get(member.replica)
            if backend is None:
                backend = Backend(self.name, member)
                self.slowness.forget(member.id)
            backend.describe(member, capacity)
            self._backends[member.replica] = backend
        for replica, backend in known.items():
            if replica not in self._backends:
                self.loads.forget(backend.instance)
        self._by_id = {backend.member.id: backend for backend in self._backends.values()}
        self._everyone = [backend.instance for backend in self._by_id.values()]
        self._suspects = any(backend.suspect_until > 0 for backend in self._by_id.values())
        self._reachable: list[Instance] = []
        self._seen_change = -1
        self._revision += 1

    def backends(self) -> Collection[Backend]:
        return self._backends.values()

    @property
    def ready(self) -> bool:
        """Whether somebody can take a new request, room aside."""
        return any(instance.healthy and not instance.draining for instance in self._everyone)

    # --- the choice -----------------------------------------------------------------------------------------------

    def choose(self, request: Request, tried: Collection[str], now: float) -> Lease:
        """A place for the request. `tried`: ids that were asked already. Raises NoCapacity, CircuitOpen, NoHealthyInstance."""
        if now >= self._refresh_at:
            self._refresh(now)
        self.circuits.refresh(now)
        if self.circuits.changed != self._seen_change:
            self._look_again(now)
        if not self._is_ready:  # a panic needs somebody who is well, or nobody would ever be told that all are ill
            raise self._nobody(tried, now)
        self.loads.refresh(self._everyone, now)
        if self._limited_in_all and sum([instance.load for instance in self._everyone]) >= self.settings.limits.max_connections:
            raise NoCapacity
        eligible = [instance for instance in self._reachable if instance.load < instance.capacity]
        if tried or self._suspects:
            eligible = [instance for instance in eligible if instance.id not in tried and not self._is_suspect(instance, now)]
        chosen = self._chooser.choose(eligible, self._everyone, request, self._revision)
        if chosen is None:
            chosen = self._in_doubt(request, tried, now)
        if chosen is None:
            raise self._nobody(tried, now)
        return Lease(self, self._by_id[chosen.id], now, request.now)

    def _look_again(self, now: float) -> None:
        """Health or a breaker has changed: who may be asked, and what the levels are made of."""
        self._seen_change = self.circuits.changed
        self._revision += 1
        self._reachable = [backend.instance for backend in self._by_id.values() if backend.answers and backend.passes(now)]
        self._is_ready = self.ready

    def _in_doubt(self, request: Request, tried: Collection[str], now: float) -> Instance | None:
        """Of those that only others' requests fill, as was heard some time ago: asking is the way to find out."""
        doubtful = [
            instance
            for instance in self._reachable
            if self._is_doubtful(instance, now) and instance.id not in tried and not self._is_suspect(instance, now)
        ]
        return self._chooser.choose(doubtful, self._everyone, request, self._revision) if doubtful else None

    def _is_doubtful(self, instance: Instance, now: float) -> bool:
        return instance.load >= instance.capacity > self.loads.own(instance) and now - self.loads.heard_at(instance) > DOUBT_S

    def may_have_room(self, now: float) -> bool:
        """False: it is not worth asking for one who waits. True also when nobody is left to wait for."""
        return not self.ready or any(
            instance.load < instance.capacity or self._is_doubtful(instance, now) for instance in self._everyone
        )

    def _nobody(self, tried: Collection[str], now: float) -> SwiftClawError | NoCapacity:
        """Why nobody can be asked."""
        candidates = [
            backend
            for backend in self._by_id.values()
            if backend.well
            and not backend.instance.draining
            and backend.instance.weight > 0
            and backend.instance.id not in tried
            and not self._is_suspect(backend.instance, now)
        ]
        if any(backend.passes(now) and backend.instance.load >= backend.instance.capacity for backend in candidates):
            return NoCapacity()
        wait_s = self.circuits.wait_s(candidates, now)
        if wait_s is not None:
            return CircuitOpen(
                f"the circuit breaker of every instance of {self.name} that could be asked is open",
                agent=self.name,
                retry_after_s=max(1.0, wait_s),
            )
        return NoHealthyInstance(f"no instance of {self.name} can take a request now", agent=self.name, retry_after_s=1)

    def is_last(self, backend: Backend, tried: Collection[str]) -> bool:
        """Whether nobody is left to ask after this one."""
        now = time.monotonic()
        return not any(
            other.well
            and not other.instance.draining
            and other is not backend
            and other.member.id not in tried
            and other.passes(now)
            and other.suspect_until <= now
            for other in self._by_id.values()
        )

    def home(self, request: Request) -> Backend | None:
        """Where the request's session lives, once it was chosen for."""
        name = self._chooser.home(request)
        return self._by_id.get(name) if name else None

    # --- what is learned ------------------------------------------------------------------------------------------

    def answered(self, instance: Instance, on_arrival: float, seconds: float, now: float, *, failed: bool) -> None:
        """One answer's time; a failure tells at once."""
        changed = self.slowness.record(instance.id, on_arrival, seconds, now, failed=failed)
        if changed is not None and self._by_slowness:
            instance.slowness = changed

    def suspect(self, backend: Backend, now: float) -> None:
        backend.suspect_until = now + SUSPECT_S
        self._suspects = True

    def adopt(self, told: Mapping[str, BreakerReport], gateway: str, now: float) -> None:
        """Other gateways' breakers."""
        self.circuits.adopt(told, gateway, self._backends, now)

    def tick(self, now: float) -> None:
        """What happens by time alone; several times a second."""
        self.circuits.overdue(self._backends.values(), now)
        if len(self.line):
            self.line.expire(now)
            self.line.move(now)

    def _is_suspect(self, instance: Instance, now: float) -> bool:
        return self._by_id[instance.id].suspect_until > now

    def _refresh(self, now: float) -> None:
        """What changes with time: weights while something warms up, slowness, suspicions that have passed."""
        self._refresh_at = now + REFRESH_S
        balancing = self.settings.load_balancing
        weights = weights_of(balancing.weighted, self._by_id)
        if balancing.slow_start_s:
            today = time.time()
            ages = {name: today - backend.member.started_at for name, backend in self._by_id.items()}
            weights = warm_weights(weights, ages, balancing.slow_start_s)
        ratios = self.slowness.all(now) if self._by_slowness else {}
        for instance in self._everyone:
            instance.weight = weights[instance.id]
            instance.slowness = ratios.get(instance.id, 1.0)
        self._suspects = any(backend.suspect_until > now for backend in self._by_id.values())
