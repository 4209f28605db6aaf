"""How far are the other regions? A small request to one instance of each, now and then, on a connection that is kept.

Only for agents that are routed by distance. The least of the last few times counts: what is above it is waiting, not way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from cluster.messages import KEY_HEADER, PING_PATH
from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import Backend
from deployments.upstream.connection import ConnectionBroken, NotConnected
from deployments.upstream.connection_pool import ConnectionPool

log = logging.getLogger("swiftclaw.gateway")

EVERY_S = 10.0
FIRST_S = 1.0  # the first few rounds follow quickly
KEPT = 6
PATIENCE_S = 5.0


async def measure_forever(agents: AgentTable, connections: ConnectionPool, here: str) -> None:
    times: dict[str, deque[float]] = {}
    rounds = 0
    while True:
        await asyncio.sleep(FIRST_S if rounds < KEPT else EVERY_S)
        targets = _one_per_region(agents)
        rounds += bool(targets)
        for region, backend in targets.items():
            ms = await _round_trip_ms(agents, connections, backend)
            if ms is not None:
                seen = times.setdefault(region, deque(maxlen=KEPT))
                seen.append(ms)
                agents.distances.measured(here, region, round(min(seen), 1))


def _one_per_region(agents: AgentTable) -> dict[str, Backend]:
    return {
        backend.member.region: backend
        for pool in agents.pools.values()
        if pool.by_client
        for backend in pool.backends()
        if backend.instance.healthy
    }


async def _round_trip_ms(agents: AgentTable, connections: ConnectionPool, backend: Backend) -> float | None:
    """The second of two requests in a row: the first may have had to connect."""
    member, key = backend.member, agents.snapshot.key if agents.snapshot else ""
    took = None
    for _ in range(2):
        began = time.monotonic()
        try:
            answer = await asyncio.wait_for(
                connections.request("GET", member.host, member.port, PING_PATH, [(KEY_HEADER, key.encode())], None), PATIENCE_S
            )
        except (NotConnected, ConnectionBroken, asyncio.TimeoutError) as error:
            log.info("the way to %s was not measured: %r", member.region, error)
            return None
        took = (time.monotonic() - began) * 1000
        answer.whole()
        answer.close()
    return took
