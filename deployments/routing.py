"""One gateway's view of every agent: who may take a request, what is in flight where, and the choice itself.

All sync. A `Lease` is the count of one request on one instance; it is taken with the choice (no await between) and
released once, when the answer's last byte is out or its sender is gone, in whatever way.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from random import Random

from cluster.messages import AgentView, InstanceCounts, Member, Observation, Snapshot
from cluster.metrics import Key, Tally, merge
from policies import STRATEGIES
from policies.base import Instance, Request
from policies.errors import STATUS, NoHealthyInstance, SwiftClawError, UnknownAgent

SUSPECT_S = 1.0  # one that refused a connection is left alone this long, unless the Controller says otherwise


class Backend:
    """One instance, its counts here and what it said of itself."""

    __slots__ = ("instance", "key", "member", "suspect_until", "tally")

    def __init__(self, agent: str, member: Member) -> None:
        self.member = member
        self.key: Key = (agent, member.version, member.region, member.id)
        self.tally = Tally()
        self.suspect_until = 0.0
        self.instance = Instance(id=member.id)
        self.describe(member)

    def describe(self, member: Member) -> None:
        self.member = member
        self.instance.region = member.region
        self.instance.version = member.version
        self.instance.priority = member.priority

    def __repr__(self) -> str:
        return f"<{self.member.id} {self.member.state}, {self.tally.active} in flight here, load {self.instance.load}>"


class Lease:
    """One request's place on one instance."""

    __slots__ = ("_open", "backend", "first_byte_at", "started_at")

    def __init__(self, backend: Backend, started_at: float) -> None:
        self.backend = backend
        self.started_at = started_at
        self.first_byte_at: float | None = None
        self._open = True
        backend.tally.active += 1
        backend.instance.load += 1

    def heard(self, now: float, reported: int | None) -> None:
        """The head of the answer is here; `reported`: the instance's own count, this request included."""
        self.first_byte_at = now
        if reported is not None:
            self.backend.instance.load = max(reported, self.backend.tally.active)

    def release(self, code: int | None, now: float) -> None:
        """`code` None: not to be counted (the request goes on elsewhere)."""
        if not self._open:
            return
        self._open = False
        tally, instance = self.backend.tally, self.backend.instance
        tally.active -= 1
        instance.load = max(instance.load - 1, tally.active)
        if code is not None:
            first = None if self.first_byte_at is None else self.first_byte_at - self.started_at
            tally.add(code, now - self.started_at, first)


class Pool:
    """One agent."""

    def __init__(self, name: str, view: AgentView, rng: Random) -> None:
        self.name = name
        self._rng = rng
        self._backends: dict[str, Backend] = {}  # by replica
        self._strategy_name = ""
        self.describe(view)

    def describe(self, view: AgentView) -> None:
        """Take over what is new; counts of instances that stay are kept."""
        self.view = view
        self.settings = view.settings
        if view.settings.load_balancing.strategy != self._strategy_name:
            self._strategy_name = view.settings.load_balancing.strategy
            self._strategy = STRATEGIES.get(self._strategy_name, STRATEGIES["round-robin"])(self._rng)
        known, self._backends = self._backends, {}
        for member in view.members:
            backend = known.get(member.replica) or Backend(self.name, member)
            backend.describe(member)
            if member.state == "healthy":
                backend.suspect_until = 0.0
            self._backends[member.replica] = backend
        self._healthy = [backend for backend in self._backends.values() if backend.member.state == "healthy"]
        self._by_id = {backend.member.id: backend for backend in self._backends.values()}
        self._candidates = [backend.instance for backend in self._healthy]
        self._suspects = False

    @property
    def ready(self) -> bool:
        return bool(self._healthy)

    def backends(self) -> Collection[Backend]:
        return self._backends.values()

    def choose(self, request: Request, tried: Collection[str]) -> Lease:
        """A place for the request. `tried`: ids that were asked already. Raises NoHealthyInstance."""
        candidates = self._candidates
        if tried or self._suspects:
            candidates = [
                backend.instance
                for backend in self._healthy
                if backend.suspect_until <= request.now and backend.member.id not in tried
            ]
            self._suspects = any(backend.suspect_until > request.now for backend in self._healthy)
        chosen = self._strategy.pick(candidates, request)
        if chosen is None:
            raise NoHealthyInstance(
                f"no instance of {self.name} can take a request now", agent=self.name, retry_after_s=1
            )
        return Lease(self._by_id[chosen.id], request.now)

    def suspect(self, backend: Backend, now: float) -> None:
        backend.suspect_until = now + SUSPECT_S
        self._suspects = True


class Routing:
    """All agents, as of the newest snapshot."""

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or Random()
        self.pools: dict[str, Pool] = {}
        self.snapshot: Snapshot | None = None
        self._gone: list[Backend] = []  # left, with requests still in flight or not yet reported
        self._refusals: dict[tuple[str, int], int] = {}
        self._unreachable: set[tuple[str, str]] = set()
        self._undelivered: Observation | None = None

    def apply(self, snapshot: Snapshot) -> None:
        before = {id(backend): backend for pool in self.pools.values() for backend in pool.backends()}
        known, self.pools = self.pools, {}
        for name, view in snapshot.agents.items():
            pool = known.get(name)
            if pool is None:
                pool = Pool(name, view, self._rng)
            else:
                pool.describe(view)
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
