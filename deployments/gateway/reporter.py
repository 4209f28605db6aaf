"""What does one gateway report to the Controller? Counts, refusals, unreachable instances and breakers, once a second.

An observation is a numbered batch, so that the Controller counts each once, however often it is sent. One that was not
delivered is sent again with the same counts, and with the states of that moment. Where there is a counts file, the counts
stand in it until they are delivered, and survive a kill of this process. All sync.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.event_loop import unfinished_tasks
from cluster.telemetry.tally import Key, Tally, merge
from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import Backend
from deployments.gateway.counts_file import CountsFile
from policies.breaker import BreakerUpdate
from policies.errors import SwiftClawError

NO_COUNTS = InstanceCounts()


class Reporter:
    """One gateway's observations. `counts_file`: where counts survive a kill of this process; None: nowhere."""

    def __init__(self, agents: AgentTable, counts_file: CountsFile | None = None) -> None:
        self._agents, self._counts_file = agents, counts_file
        self._removed: list[Backend] = []  # no longer in the snapshot; requests in flight, or counts to report
        self._refusals: dict[str, Tally] = {}  # by agent
        self._undelivered: Observation | None = None
        self._batch = 0  # number of the newest observation
        self.closing = False  # the gateway stops: no other gateway will withdraw what this one has counted
        self._finished: list[Tally] = []  # complete with the newest observation: freed when that is delivered

    def track(self, removed: Iterable[Backend]) -> None:
        """After each snapshot: keep the counts of new instances safe, and those of `removed` ones until they are reported."""
        self._removed.extend(removed)
        for pool in self._agents.pools.values():
            for backend in pool.backends():
                self._attach(backend.key, backend.tally)

    def refused(self, error: SwiftClawError) -> None:
        """Count a request that reached no instance. Those for unknown agents are counted together."""
        self._refuse(error.agent, error.status)

    def rejected(self, status: int) -> None:
        """Count a request that the listener rejected: the edge never saw it."""
        self._refuse(None, status)

    def observation(self) -> Observation:
        """What happened since the last delivered observation, with the states of this moment."""
        counted = self._undelivered or self._next_batch()
        active: dict[Key, int] = {}
        for backend in self._backends():  # a stopping process and its replacement share a key
            active[backend.key] = active.get(backend.key, 0) + backend.tally.active
        keys = {**dict.fromkeys(active), **dict.fromkeys(counted.instances)}
        pools = self._agents.pools
        self._undelivered = replace(
            counted,
            instances={key: replace(counted.instances.get(key, NO_COUNTS), active=active.get(key, 0)) for key in keys},
            unreachable=counted.unreachable | {(name, replica) for name, pool in pools.items() for replica in pool.unreachable},
            circuits={**counted.circuits, **self._breaker_updates()},
            queued={name: len(pool.wait_queue) for name, pool in pools.items()},
            tasks=0 if self.closing else unfinished_tasks(),
            distances_ms=self._agents.distances.measurements(),
        )
        for pool in pools.values():
            pool.unreachable.clear()
        return self._undelivered

    def delivered(self) -> None:
        """The Controller has the newest observation."""
        self._undelivered = None
        if self._counts_file is not None:
            self._counts_file.acknowledge(self._batch)
            for tally in self._finished:
                self._counts_file.detach(tally)
        self._finished.clear()

    @property
    def is_urgent(self) -> bool:
        """Whether an observation should not wait for the next round: an instance refused a connection, a breaker changed, or
        a request waits for an agent's first instance."""
        return any(
            pool.unreachable or pool.breakers.has_updates or (len(pool.wait_queue) and not pool.ready)
            for pool in self._agents.pools.values()
        )

    def _refuse(self, agent: str | None, status: int) -> None:
        name = agent if agent in self._agents.pools else None
        tally = self._refusals.get(name or "")
        if tally is None:
            tally = self._refusals[name or ""] = Tally()
            self._attach((name or "", "", "", ""), tally)
        tally.count(status)

    def _next_batch(self) -> Observation:
        """What was counted since the last batch."""
        pools = self._agents.pools
        confirmed_by = inf if self.closing else time.monotonic()
        instances: dict[Key, InstanceCounts] = {}
        for backend in self._backends():
            instances[backend.key] = merge(instances.get(backend.key, NO_COUNTS), backend.tally.take())
        refusals = {
            (agent, status): count for agent, tally in self._refusals.items() for status, count in tally.take().codes.items()
        }
        self._finished = [backend.tally for backend in self._removed if not backend.tally.active]
        self._removed = [backend for backend in self._removed if backend.tally.active]
        self._batch += 1
        if self._counts_file is not None:
            self._counts_file.turn()
        moved_sessions = {
            (name, cause): count
            for name, pool in pools.items()
            if pool.sessions is not None
            for cause, count in pool.sessions.take_moved(confirmed_by).items()
        }
        retries = {name: pool.retries for name, pool in pools.items() if pool.retries}
        for name in retries:
            pools[name].retries = 0
        return Observation(
            self._agents.gateway, instances, refusals, retries=retries, moved_sessions=moved_sessions, batch=self._batch
        )

    def _breaker_updates(self) -> dict[tuple[str, str], BreakerUpdate]:
        now = time.monotonic()
        return {
            (name, replica): update
            for name, pool in self._agents.pools.items()
            for replica, update in pool.breakers.take_updates(now).items()
        }

    def _backends(self) -> Iterator[Backend]:
        for pool in self._agents.pools.values():
            yield from pool.backends()
        yield from self._removed

    def _attach(self, key: Key, tally: Tally) -> None:
        if self._counts_file is not None:
            self._counts_file.attach(key, tally)
