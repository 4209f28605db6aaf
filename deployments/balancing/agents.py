"""Which agents does this gateway serve? The table of them, as of the Controller's newest snapshot.

All sync. One agent is a `balancing.pool.Pool`, one instance of it a `balancing.backend.Backend`.
"""

from __future__ import annotations

import time
from random import Random

from cluster.messages import Snapshot
from deployments.balancing.backend import Backend
from deployments.balancing.pool import Pool
from deployments.request.client_address import ClientAddresses
from deployments.request.sessions import cookie_name
from policies.errors import NoHealthyInstance, UnknownAgent
from policies.regions.distance import Distances


class AgentTable:
    """`gateway`: this gateway's name, by which it recognizes its own breaker reports."""

    def __init__(self, rng: Random | None = None, gateway: str = "") -> None:
        self._rng = rng or Random()
        self.gateway = gateway
        self.pools: dict[str, Pool] = {}
        self.snapshot: Snapshot | None = None
        self.distances = Distances()
        self.clients = ClientAddresses()

    def __repr__(self) -> str:
        version = self.snapshot.version if self.snapshot else None
        return f"<AgentTable of {self.gateway or 'a gateway'}: {len(self.pools)} agents, snapshot {version}>"

    def apply(self, snapshot: Snapshot) -> list[Backend]:
        """Take over a snapshot; counts, breakers and sessions of what stays are kept. Returns the backends it removed."""
        if self.snapshot is None or snapshot.distances_ms != self.snapshot.distances_ms:
            self.distances.configure(snapshot.distances_ms)
        self.clients.configure(snapshot.client_regions, snapshot.trusted_proxies)
        keys = [bytes.fromhex(key) for key in snapshot.session_keys]
        removed = {id(backend): backend for pool in self.pools.values() for backend in pool.backends()}
        previous, self.pools = self.pools, {}
        now = time.monotonic()
        restarted = self.snapshot is None or _epoch(self.snapshot) != _epoch(snapshot)  # the Controller has lost its state
        for name, view in snapshot.agents.items():
            pool = previous.pop(name, None)
            if pool is None:
                pool = Pool(name, view, self._rng, self.distances, keys, now)
            else:
                pool.update(view, self.distances, keys, now)
            pool.cookie = cookie_name(snapshot.key, name)
            if restarted:
                pool.breakers.resend_all()
            pool.merge_breakers(snapshot.circuits, self.gateway, now)
            self.pools[name] = pool
            for backend in pool.backends():
                removed.pop(id(backend), None)
        self.snapshot = snapshot
        for pool in previous.values():
            pool.wait_queue.dismiss(UnknownAgent(f"agent {pool.name!r} was removed", agent=pool.name))
        for pool in self.pools.values():
            pool.wait_queue.move(now)
        return list(removed.values())

    def tick(self, now: float) -> None:
        """Do what is due by time alone; call several times a second."""
        for pool in self.pools.values():
            pool.tick(now)

    def postpone(self, seconds: float, now: float) -> None:
        """Move the deadlines that `tick` enforces: this gateway has paused."""
        for pool in self.pools.values():
            pool.postpone(seconds, now)

    def pool(self, agent: str) -> Pool:
        """Raises UnknownAgent, or NoHealthyInstance before the first snapshot."""
        pool = self.pools.get(agent)
        if pool is not None:
            return pool
        if self.snapshot is None:
            raise NoHealthyInstance("the gateway is starting", agent=agent, retry_after_s=1)
        raise UnknownAgent(f"there is no agent {agent!r}", agent=agent)


def _epoch(snapshot: Snapshot) -> str:
    """Identifies the Controller process that made it."""
    return snapshot.version.rpartition(".")[0]
