"""Strategies on real processes: a slow instance, three regions, changes while requests run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import Cluster, free_port, until

pytestmark = pytest.mark.cluster

SLOW = """
import asyncio
from swiftclaw import Agent

agent = Agent("uneven")


@agent.on_message
async def handle(message, request):
    await asyncio.sleep(0.3 if request.instance == "instance-1" else 0.03)
    return request.instance
"""


async def answered(url: str, agent: str, requests: int, at_once: int, headers: dict[str, str] | None = None) -> list[str]:
    """Who answered each request, in the order in which they were sent. Nothing may fail."""
    who = [""] * requests
    numbers = iter(range(requests))

    async def one(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = {"message": "hi"}
            async with client.post(f"{url}/agents/{agent}/messages", json=body, headers=headers) as response:
                assert response.status == 200, await response.text()
                await response.read()
                who[number] = response.headers["x-swiftclaw-instance"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(one(client) for _ in range(at_once)))
    return who


class Regions:
    """Two agents, three regions, an edge in two of them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ports = {"us-east-1": cluster.port, "eu-west-1": free_port()}

    def url(self, region: str) -> str:
        return f"http://127.0.0.1:{self.ports[region]}"

    def write(self, strategy: str, uneven: int = 3, **balancing: Any) -> None:
        regions = {"us-east-1": {"instances": 2}, "eu-west-1": {"instances": 4}, "ap-southeast-1": {"instances": 1}}
        self.cluster.write(
            {
                "uneven": {
                    "agent": "uneven:agent",
                    "regions": {"us-east-1": {"instances": uneven}},
                    "loadBalancing": {"strategy": strategy, **balancing},
                },
                "near": {
                    "agent": "examples.noop:agent",
                    "regions": regions,
                    "loadBalancing": {"strategy": "geographic"},
                },
            },
            gateways=[{"region": name, "port": port, "replicas": 1} for name, port in self.ports.items()],
            distances={"eu-west-1": {"us-east-1": "80ms", "ap-southeast-1": "160ms"}},
        )

    def region_of(self, agent: str = "near") -> dict[str, str]:
        return {row["id"]: row["region"] for row in self.cluster.instances(agent)}


@pytest.fixture(scope="module")
def regions(shared: Cluster) -> Iterator[Regions]:
    (shared.folder / "uneven.py").write_text(SLOW)
    made = Regions(shared)
    made.write("round-robin")
    shared.up()
    yield made


def spared(strategy: str) -> list[Any]:
    """Fewer than an even share everywhere; how many fewer, only where nothing else runs."""
    return [(strategy, 0, 50), pytest.param(strategy, 0, 19, marks=pytest.mark.measures)]


@pytest.mark.parametrize(
    ("strategy", "low", "high"), [("round-robin", 60, 73), *spared("least-connections"), *spared("response-time")]
)
async def test_an_instance_ten_times_slower_gets_its_turn_or_is_spared(
    regions: Regions, strategy: str, low: int, high: int
) -> None:
    """Of the first 200 requests after the change; the file is applied, no instance is restarted."""
    before = regions.cluster.healthy("uneven")
    regions.write(strategy)
    regions.cluster.up()
    assert regions.cluster.healthy("uneven") == before
    who = Counter(await answered(regions.url("us-east-1"), "uneven", 200, at_once=6))
    assert low <= who["instance-1"] <= high, who


async def test_a_strategy_is_changed_while_requests_run_and_none_is_lost(regions: Regions) -> None:
    running = asyncio.create_task(answered(regions.url("us-east-1"), "uneven", 600, at_once=6))
    changes: dict[str, dict[str, Any]] = {
        "round-robin": {"weighted": {"instance-2": 1, "instance-1": 0}},
        "least-connections": {},
    }
    for strategy, balancing in changes.items():
        regions.write(strategy, **balancing)
        await asyncio.to_thread(regions.cluster.up)
    assert all(await running)


@pytest.mark.parametrize("strategy", ["least-connections", "response-time"])
async def test_a_cold_instance_that_joins_under_load_is_not_flooded(regions: Regions, strategy: str) -> None:
    """In its first second it gets no more than twice its fair share of what is sent in that second."""
    regions.write(strategy)
    await asyncio.to_thread(regions.cluster.up)
    seen: list[tuple[float, str]] = []
    joined = asyncio.Event()

    async def ask(client: aiohttp.ClientSession) -> None:
        while not joined.is_set() and len(seen) < 50_000:
            async with client.post(f"{regions.url('us-east-1')}/agents/uneven/messages", json={"message": "hi"}) as response:
                assert response.status == 200
                await response.read()
                seen.append((time.monotonic(), response.headers["x-swiftclaw-instance"]))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(12)]
        try:
            regions.write(strategy, uneven=4)
            await asyncio.to_thread(regions.cluster.up)
            await asyncio.sleep(1.5)
        finally:
            joined.set()
            await asyncio.gather(*asking)
    began = next(at for at, who in seen if who == "instance-4")
    first_second = [who for at, who in seen if began <= at < began + 1]
    assert first_second.count("instance-4") <= 2 * len(first_second) / 4, Counter(first_second)


@pytest.mark.parametrize("edge", ["eu-west-1", "us-east-1"])
async def test_clients_are_answered_by_their_own_region(regions: Regions, edge: str) -> None:
    """At the gateway of eu because it is there, at the one of us because the client says where it is."""
    headers = {"x-swiftclaw-region": "eu-west-1"} if edge != "eu-west-1" else None
    where = regions.region_of()
    who = await answered(regions.url(edge), "near", 100, at_once=4, headers=headers)
    assert {where[name] for name in who} == {"eu-west-1"}


async def test_a_region_that_loses_half_keeps_70_percent_and_one_that_loses_all_is_answered_by_the_next(
    regions: Regions,
) -> None:
    """Frozen processes: they are noticed by their silence, and nothing is sent to them from then on."""
    cluster, where = regions.cluster, regions.region_of()
    pids = [pid for name, pid in cluster.healthy("near").items() if where[name] == "eu-west-1"]
    frozen: list[int] = []

    def arrived() -> None:
        """What the Controller knows is pushed to the gateways."""
        until(lambda: all(gateway["current"] for gateway in cluster.gateways()), "every gateway knows it", 30)

    def freeze(count: int) -> None:
        for pid in pids[len(frozen) : count]:
            os.kill(pid, signal.SIGSTOP)
            frozen.append(pid)
        healthy = 7 - count
        until(lambda: len(cluster.healthy("near")) == healthy, f"{count} of eu's instances known to be silent", 30)
        arrived()

    try:
        await asyncio.to_thread(freeze, 2)
        who = await answered(regions.url("eu-west-1"), "near", 400, at_once=4)
        share = sum(where[name] == "eu-west-1" for name in who) / 4
        assert 65 <= share <= 75, share
        await asyncio.to_thread(freeze, 4)
        who = await answered(regions.url("eu-west-1"), "near", 100, at_once=4)
        assert {where[name] for name in who} == {"us-east-1"}
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    await asyncio.to_thread(until, lambda: len(cluster.healthy("near")) == 7, "all are back", 30)
    await asyncio.to_thread(arrived)
    who = await answered(regions.url("eu-west-1"), "near", 100, at_once=4)
    assert {where[name] for name in who} == {"eu-west-1"}
