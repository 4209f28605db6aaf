"""Every agent at one gateway: what the Controller's newest snapshot says, and what is told back to it.

All sync. One agent is `deployments.pool`, one instance of it `deployments.backend`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from cluster.messages import InstanceCounts, Observation, Snapshot
from cluster.telemetry.tally import Key, Tally, merge
from deployments.balancing.backend import Backend
from deployments.balancing.pool import Pool
from deployments.gateway.counts_file import CountsFile
from deployments.request.client_address import ClientAddresses
from policies.errors import STATUS, BadRequest, NoHealthyInstance, SwiftClawError, UnknownAgent
from policies.load.distance import Distances

NOTHING = InstanceCounts()


class AgentTable:
    """All agents, as of the newest snapshot. `gateway`: who this is, for the others; `spool`: where its counts are safe."""

    def __init__(self, rng: Random | None = None, gateway: str = "", spool: CountsFile | None = None) -> None:
        self._rng = rng or Random()
        self.gateway = gateway
        self.pools: dict[str, Pool] = {}
        self.snapshot: Snapshot | None = None
        self.distances = Distances()
        self.clients = ClientAddresses()
        self._gone: list[Backend] = []  # left, with requests still in flight or not yet reported
        self._refusals: dict[str, Tally] = {}  # by agent
        self._unreachable: set[tuple[str, str]] = set()
        self._undelivered: Observation | None = None
        self._batch = 0  # the number of the newest observation; each is counted once, however often it is told
        self._spool = spool
        self._counted_out: list[Tally] = []  # count no more, once that observation is delivered

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
                self._keep(backend.key, backend.tally)
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

    def refused(self, error: SwiftClawError, status: int | None = None) -> None:
        """A request that no instance got. Names that no agent has are counted together."""
        agent = (error.agent if error.agent in self.pools else "") or ""
        tally = self._refusals.get(agent)
        if tally is None:
            tally = self._refusals[agent] = Tally()
            self._keep((agent, "", "", ""), tally)
        tally.count(status or STATUS[error.type])

    def refused_unread(self, status: int) -> None:
        """What came was no request that the edge could look at."""
        self.refused(BadRequest("this is not HTTP"), status)

    def observation(self, gateway: str) -> Observation:
        """What happened since the last one that was delivered; one that was not is told again, with the states of now."""
        counted = self._undelivered or self._count(gateway)
        active: dict[Key, int] = {}
        for backend in self._everyone():  # an old process of a name and its replacement add up
            active[backend.key] = active.get(backend.key, 0) + backend.tally.active
        keys = {**dict.fromkeys(active), **dict.fromkeys(counted.instances)}
        now, circuits = time.monotonic(), dict(counted.circuits)
        for name, pool in self.pools.items():
            circuits.update({(name, replica): news for replica, news in pool.circuits.news(now).items()})
        unreachable, self._unreachable = self._unreachable, set()
        self._undelivered = replace(
            counted,
            instances={key: replace(counted.instances.get(key, NOTHING), active=active.get(key, 0)) for key in keys},
            unreachable=counted.unreachable | unreachable,
            circuits=circuits,
            queued={name: len(pool.line) for name, pool in self.pools.items()},
            distances_ms=self.distances.measurements(),
        )
        return self._undelivered

    def delivered(self) -> None:
        """The Controller has the last observation."""
        self._undelivered = None
        if self._spool is not None:
            self._spool.told(self._batch)
            for tally in self._counted_out:
                self._spool.detach(tally)
        self._counted_out.clear()

    def _count(self, gateway: str) -> Observation:
        """The next batch: what was counted since the last."""
        instances: dict[Key, InstanceCounts] = {}
        for backend in self._everyone():
            instances[backend.key] = merge(instances.get(backend.key, NOTHING), backend.tally.take())
        taken = {agent: tally.take().codes for agent, tally in self._refusals.items()}
        self._counted_out = [backend.tally for backend in self._gone if not backend.tally.active]
        self._gone = [backend for backend in self._gone if backend.tally.active]
        self._batch += 1
        if self._spool is not None:
            self._spool.turn()
        retries = {name: pool.retries for name, pool in self.pools.items() if pool.retries}
        for name in retries:
            self.pools[name].retries = 0
        refusals = {(agent, status): count for agent, codes in taken.items() for status, count in codes.items()}
        return Observation(gateway, instances, refusals, retries=retries, batch=self._batch)

    def _everyone(self) -> Iterator[Backend]:
        for pool in self.pools.values():
            yield from pool.backends()
        yield from self._gone

    def _keep(self, key: Key, tally: Tally) -> None:
        if self._spool is not None:
            self._spool.attach(key, tally)

    def news_to_tell(self) -> bool:
        return bool(self._unreachable) or any(pool.circuits.untold for pool in self.pools.values())


def _epoch(snapshot: Snapshot) -> str:
    """Which Controller it is from: one that was restarted has another."""
    return snapshot.version.rpartition(".")[0]
