"""One gateway's view of every agent: who may take a request, what is in flight where, and the choice itself.

All sync. A `Lease` is the count of one request on one instance; it is taken with the choice (no await between) and
released once, when the answer's last byte is out or its sender is gone, in whatever way.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from random import Random
from typing import NamedTuple

from cluster.messages import AgentView, InstanceCounts, Member, Observation, Snapshot
from cluster.metrics import Key, Tally, merge
from deployments.clients import Clients
from policies.base import Instance, Options, Request
from policies.chooser import Chooser
from policies.distance import Distances
from policies.errors import STATUS, NoHealthyInstance, SwiftClawError, UnknownAgent
from policies.load_view import LoadView
from policies.session_token import Tokens
from policies.slow_start import warm_weights
from policies.slowness import Slowness
from policies.weighted import weights_of

CLIENT_GONE = 499  # NGINX's code for a client that left, in metrics only
REFRESH_S = 0.5  # how often weights and slowness are looked at
SUSPECT_S = 1.0  # one that refused a connection is left alone this long, unless the Controller says otherwise


class Backend:
    """One instance, its counts here and what it said of itself."""

    __slots__ = ("instance", "key", "member", "suspect_until", "tally", "told")

    def __init__(self, agent: str, member: Member) -> None:
        self.member = member
        self.key: Key = (agent, member.version, member.region, member.id)
        self.tally = Tally()
        self.suspect_until = 0.0
        self.instance = Instance(id=member.id, region=member.region)
        self.told = (  # what clients are told of it
            (b"x-swiftclaw-instance", member.id.encode()),
            (b"x-swiftclaw-version", member.version.encode()),
            (b"x-swiftclaw-region", member.region.encode()),
        )

    def describe(self, member: Member, capacity: int) -> None:
        self.member = member
        instance = self.instance
        instance.version, instance.priority = member.version, member.priority
        instance.healthy = member.state in ("healthy", "draining")
        instance.checked = member.state != "starting"
        instance.draining = member.state == "draining"
        instance.capacity = capacity
        if instance.healthy:
            self.suspect_until = 0.0

    def __repr__(self) -> str:
        return f"<{self.member.id} {self.member.state}, {self.tally.active} in flight here, load {self.instance.load}>"


class Lease:
    """One request's place on one instance."""

    __slots__ = ("_arrival", "_open", "backend", "first_byte_at", "pool", "started_at")

    def __init__(self, pool: Pool, backend: Backend, now: float) -> None:
        self.pool, self.backend, self.started_at = pool, backend, now
        self.first_byte_at: float | None = None
        self._arrival = backend.instance.load
        self._open = True
        backend.tally.active += 1
        pool.loads.sent(backend.instance)

    def heard(self, now: float, report: Report | None) -> None:
        """The head of the answer is here, with the instance's own report of its load if there is one."""
        self.first_byte_at = now
        if report is not None:
            self._arrival = report.on_arrival
            self.pool.loads.reported(self.backend.instance, report.in_flight, now)

    def release(self, code: int | None, now: float) -> None:
        """`code` None: not to be counted (the request goes on elsewhere)."""
        if not self._open:
            return
        self._open = False
        tally, instance = self.backend.tally, self.backend.instance
        tally.active -= 1
        self.pool.loads.done(instance)
        if code is None:
            return
        first_byte_s = None if self.first_byte_at is None else self.first_byte_at - self.started_at
        tally.add(code, now - self.started_at, first_byte_s)
        if code != CLIENT_GONE:
            seconds = now - self.started_at if first_byte_s is None else first_byte_s
            self.pool.answered(instance, self._arrival, seconds, now, failed=code >= 500)
            if code < 500:
                self.pool.loads.answered(now - self.started_at)


class Report(NamedTuple):
    """What an instance says of itself with every answer."""

    in_flight: int  # the answered request included
    on_arrival: int  # when that request came in, itself not counted


class Pool:
    """One agent."""

    def __init__(self, name: str, view: AgentView, rng: Random, distances: Distances, keys: Sequence[bytes]) -> None:
        self.name = name
        self._backends: dict[str, Backend] = {}  # by replica
        self._chooser = Chooser(view.settings.load_balancing.strategy, rng)
        self._revision = 0
        self.slowness = Slowness()
        self.loads = LoadView()
        self.describe(view, distances, keys)

    def describe(self, view: AgentView, distances: Distances, keys: Sequence[bytes]) -> None:
        """Take over what is new; counts, turns and sessions of what stays are kept."""
        self.view, self.settings = view, view.settings
        balancing = view.settings.load_balancing
        self.affinity = balancing.session_affinity if view.session_affinity else None
        self.tokens = Tokens(keys, self.affinity.ttl_s) if self.affinity else None
        self._chooser.configure(
            balancing.strategy,
            Options(regions=balancing.regions, distances=distances),
            self.affinity.ttl_s if self.affinity else None,
        )
        self.by_client = balancing.strategy == "geographic"
        self._by_slowness = balancing.strategy == "response-time"
        self.slowness.window_s = balancing.window_s
        self._meet(view.members, view.settings.limits.max_connections_per_instance)
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
        self._reachable = [
            backend.instance for backend in self._by_id.values() if backend.member.state not in ("ejected", "stopped")
        ]
        self.ready = any(instance.healthy and not instance.draining for instance in self._everyone)
        self._suspects = any(backend.suspect_until > 0 for backend in self._by_id.values())
        self._revision += 1

    def backends(self) -> Collection[Backend]:
        return self._backends.values()

    def choose(self, request: Request, tried: Collection[str]) -> Lease:
        """A place for the request. `tried`: ids that were asked already. Raises NoHealthyInstance."""
        now = request.now
        if now >= self._refresh_at:
            self._refresh(now)
        if not self.ready:  # a panic needs somebody who is well, or nobody would ever be told that all are ill
            raise self._nobody()
        self.loads.refresh(self._everyone, now)
        eligible = self._reachable
        if tried or self._suspects:
            eligible = [instance for instance in eligible if instance.id not in tried and not self._is_suspect(instance, now)]
        chosen = self._chooser.choose(eligible, self._everyone, request, self._revision)
        if chosen is None:
            raise self._nobody()
        return Lease(self, self._by_id[chosen.id], now)

    def _nobody(self) -> NoHealthyInstance:
        return NoHealthyInstance(f"no instance of {self.name} can take a request now", agent=self.name, retry_after_s=1)

    def home(self, request: Request) -> Backend | None:
        """Where the request's session lives, once it was chosen for."""
        name = self._chooser.home(request)
        return self._by_id.get(name) if name else None

    def answered(self, instance: Instance, on_arrival: float, seconds: float, now: float, *, failed: bool) -> None:
        """One answer's time; a failure tells at once."""
        changed = self.slowness.record(instance.id, on_arrival, seconds, now, failed=failed)
        if changed is not None and self._by_slowness:
            instance.slowness = changed

    def suspect(self, backend: Backend, now: float) -> None:
        backend.suspect_until = now + SUSPECT_S
        self._suspects = True

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


class Routing:
    """All agents, as of the newest snapshot."""

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or Random()
        self.pools: dict[str, Pool] = {}
        self.snapshot: Snapshot | None = None
        self.distances = Distances()
        self.clients = Clients()
        self._gone: list[Backend] = []  # left, with requests still in flight or not yet reported
        self._refusals: dict[tuple[str, int], int] = {}
        self._unreachable: set[tuple[str, str]] = set()
        self._undelivered: Observation | None = None

    def apply(self, snapshot: Snapshot) -> None:
        if self.snapshot is None or snapshot.distances_ms != self.snapshot.distances_ms:
            self.distances.configure(snapshot.distances_ms)
        self.clients.configure(snapshot.client_regions, snapshot.trusted_proxies)
        keys = [bytes.fromhex(key) for key in snapshot.session_keys]
        before = {id(backend): backend for pool in self.pools.values() for backend in pool.backends()}
        known, self.pools = self.pools, {}
        for name, view in snapshot.agents.items():
            pool = known.get(name)
            if pool is None:
                pool = Pool(name, view, self._rng, self.distances, keys)
            else:
                pool.describe(view, self.distances, keys)
            self.pools[name] = pool
            for backend in pool.backends():
                before.pop(id(backend), None)
        self._gone.extend(before.values())
        self.snapshot = snapshot

    def pool(self, agent: str) -> Pool:
        """Raises UnknownAgent, or NoHealthyInstance while nothing is known yet."""
        pool = self.pools.get(agent)
        if pool is not None:
            return pool
        if self.snapshot is None:
            raise NoHealthyInstance("the gateway is starting", agent=agent, retry_after_s=1)
        raise UnknownAgent(f"there is no agent {agent!r}", agent=agent)

    def unreachable(self, pool: Pool, backend: Backend) -> None:
        """It refused a connection: leave it alone for a moment and tell the Controller."""
        pool.suspect(backend, time.monotonic())
        self._unreachable.add((pool.name, backend.member.replica))

    def refused(self, error: SwiftClawError) -> None:
        """A request that no instance got. Names that no agent has are counted together."""
        agent = error.agent if error.agent in self.pools else ""
        key = (agent or "", STATUS[error.type])
        self._refusals[key] = self._refusals.get(key, 0) + 1

    def observation(self, gateway: str) -> Observation:
        """What happened since the last one that was delivered."""
        instances: dict[Key, InstanceCounts] = {}
        everyone = [backend for pool in self.pools.values() for backend in pool.backends()] + self._gone
        for backend in everyone:
            counts = backend.tally.take()
            before = instances.get(backend.key)
            if before is not None:  # an old process of that name and its replacement
                counts = merge(before, counts)
                counts = InstanceCounts(**{**vars(counts), "active": before.active + counts.active})
            instances[backend.key] = counts
        self._gone = [backend for backend in self._gone if backend.tally.active]
        refusals, self._refusals = self._refusals, {}
        unreachable, self._unreachable = self._unreachable, set()
        seen = Observation(gateway, instances, refusals, frozenset(unreachable))
        if self._undelivered is not None:
            seen = _together(self._undelivered, seen)
        self._undelivered = seen
        return seen

    def delivered(self) -> None:
        self._undelivered = None

    def news_to_tell(self) -> bool:
        return bool(self._unreachable)


def _together(earlier: Observation, later: Observation) -> Observation:
    instances = dict(later.instances)
    for key, counts in earlier.instances.items():
        instances[key] = merge(counts, instances.get(key, InstanceCounts()))
    refusals = dict(earlier.refusals)
    for refusal, count in later.refusals.items():
        refusals[refusal] = refusals.get(refusal, 0) + count
    return Observation(later.gateway, instances, refusals, earlier.unreachable | later.unreachable)
