"""How far away are the other regions? Round trips to one instance of each, on a kept connection.

Only for agents that are routed by distance. The minimum of the last few round trips counts: the rest is waiting.
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
FIRST_S = 1.0  # between the first KEPT rounds
KEPT = 6
TIMEOUT_S = 5.0


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
                latest = times.setdefault(region, deque(maxlen=KEPT))
                latest.append(ms)
                agents.distances.measured(here, region, round(min(latest), 1))


def _one_per_region(agents: AgentTable) -> dict[str, Backend]:
    return {
        backend.member.region: backend
        for pool in agents.pools.values()
        if pool.by_client
        for backend in pool.backends()
        if backend.instance.healthy
    }


async def _round_trip_ms(agents: AgentTable, connections: ConnectionPool, backend: Backend) -> float | None:
    """The time of the second of two requests: the first may have had to connect."""
    member, key = backend.member, agents.snapshot.key if agents.snapshot else ""
    ms = None
    for _ in range(2):
        started_at = time.monotonic()
        try:
            response = await asyncio.wait_for(
                connections.request("GET", member.host, member.port, PING_PATH, [(KEY_HEADER, key.encode())], None), TIMEOUT_S
            )
        except (NotConnected, ConnectionBroken, asyncio.TimeoutError) as error:
            log.info("could not measure the round trip to region %s: %r", member.region, error)
            return None
        ms = (time.monotonic() - started_at) * 1000
        response.whole()
        response.close()
    return ms
