"""Every agent at one gateway: what the Controller's newest snapshot says, and what is told back to it.

All sync. One agent is `deployments.pool`, one instance of it `deployments.backend`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import TypeVar

from cluster.messages import InstanceCounts, Observation, Snapshot
from cluster.metrics import Key, merge
from deployments.backend import Backend
from deployments.clients import Clients
from deployments.pool import Pool
from policies.breaker import News
from policies.distance import Distances
from policies.errors import STATUS, NoHealthyInstance, SwiftClawError, UnknownAgent

T = TypeVar("T")


class Routing:
    """All agents, as of the newest snapshot. `gateway`: who this is, for the others."""

    def __init__(self, rng: Random | None = None, gateway: str = "") -> None:
        self._rng = rng or Random()
        self.gateway = gateway
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
        now = time.monotonic()
        another = self.snapshot is None or _epoch(self.snapshot) != _epoch(snapshot)  # a Controller that knows nothing yet
        for name, view in snapshot.agents.items():
            pool = known.pop(name, None)
            if pool is None:
                pool = Pool(name, view, self._rng, self.distances, keys, now)
            else:
                pool.describe(view, self.distances, keys, now)
            if another:
                pool.circuits.retell()
            pool.adopt(snapshot.circuits, self.gateway, now)
            self.pools[name] = pool
            for backend in pool.backends():
                before.pop(id(backend), None)
        self._gone.extend(before.values())
        self.snapshot = snapshot
        for pool in known.values():
            pool.line.dismiss(UnknownAgent(f"{pool.name} was removed", agent=pool.name))
        for pool in self.pools.values():
            pool.line.move(now)

    def tick(self, now: float) -> None:
        """What happens by time alone; to be called several times a second."""
        for pool in self.pools.values():
            pool.tick(now)

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
        now, circuits, retries = time.monotonic(), dict[tuple[str, str], News](), dict[str, int]()
        for name, pool in self.pools.items():
            circuits.update({(name, replica): news for replica, news in pool.circuits.news(now).items()})
            if pool.retries:
                retries[name], pool.retries = pool.retries, 0
        queued = {name: len(pool.line) for name, pool in self.pools.items()}
        seen = Observation(gateway, instances, refusals, frozenset(unreachable), circuits, retries, queued)
        if self._undelivered is not None:
            seen = _together(self._undelivered, seen)
        self._undelivered = seen
        return seen

    def delivered(self) -> None:
        self._undelivered = None

    def news_to_tell(self) -> bool:
        return bool(self._unreachable) or any(pool.circuits.untold for pool in self.pools.values())


def _epoch(snapshot: Snapshot) -> str:
    """Which Controller it is from: one that was restarted has another."""
    return snapshot.version.rpartition(".")[0]


def _together(earlier: Observation, later: Observation) -> Observation:
    """Counts add up; of what is only a state, the later one's."""
    instances = dict(later.instances)
    for key, counts in earlier.instances.items():
        instances[key] = merge(counts, instances.get(key, InstanceCounts()))
    return replace(
        later,
        instances=instances,
        refusals=_sum(earlier.refusals, later.refusals),
        unreachable=earlier.unreachable | later.unreachable,
        circuits={**earlier.circuits, **later.circuits},
        retries=_sum(earlier.retries, later.retries),
    )


def _sum(one: Mapping[T, int], other: Mapping[T, int]) -> dict[T, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in (*one, *other)}
