"""More than the instances can do, and clients that take a connection and say nothing: nobody else is to suffer for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiohttp
import psutil
import pytest

from tests.integration.conftest import Cluster, until
from tests.integration.load import Load, Sent, note

pytestmark = pytest.mark.cluster

SERVICE_S, PLACES = 0.5, 10  # long enough that what a busy machine adds to it is little
CONNECTION_TIMEOUT_S = 2.0
INSTANCES = 2
CAPACITY = INSTANCES * PLACES / SERVICE_S  # requests a second, if nothing else took time
REQUEST_TIMEOUT_S = 20.0
SLACK_S = 1.5  # for a machine that has two cores for everything
SILENT = 200
BUSY = f"""
import asyncio
from swiftclaw import Agent

agent = Agent("busy")


@agent.on_message
async def handle(message):
    await asyncio.sleep({SERVICE_S})
    return "ok"
"""


@pytest.fixture(scope="module")
def busy(shared: Cluster) -> Cluster:
    """40 requests a second are what it can do; a line of at most 60 at each of two gateways: more than is served in time."""
    (shared.folder / "busy.py").write_text(BUSY)
    limits = {
        "maxConnections": 60,
        "maxConnectionsPerInstance": PLACES,
        "connectionTimeout": f"{CONNECTION_TIMEOUT_S}s",
        "requestTimeout": f"{REQUEST_TIMEOUT_S}s",
    }
    shared.write({"my-agent": {"agent": "busy:agent", "regions": {"us-east-1": {"instances": INSTANCES}}, "limits": limits}})
    shared.up()
    return shared


async def most_per_second(cluster: Cluster, seconds: float) -> float:
    """What it does for as many clients as it has places, each of which asks again at once."""
    load = Load(cluster.url)
    ends = time.monotonic() + seconds

    async def client_for_ever(client: aiohttp.ClientSession) -> None:
        while time.monotonic() < ends:
            await load.one(client)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(client_for_ever(client) for _ in range(INSTANCES * PLACES)))
    assert load.failed() == []
    return sum(sent.ended <= ends for sent in load.sent) / seconds


@dataclass
class Overload:
    """What three times the capacity led to. Rates in requests a second, memory in MiB per gateway at the start and the end."""

    goodput: float
    capacity: float
    accepted: list[Sent]
    refused: list[Sent]
    growth: list[float]
    before: list[int]
    after: list[int]

    @property
    def slowest_s(self) -> float:
        return max(sent.seconds for sent in self.accepted)

    @property
    def longest_s(self) -> float:
        return max(sent.seconds for sent in self.refused)


async def overload(cluster: Cluster, seconds: float) -> Overload:
    before = await most_per_second(cluster, 4)
    pids = [gateway["pid"] for gateway in cluster.gateways()]
    memory: list[list[float]] = []

    async def weigh() -> None:
        for pause_s in (seconds - 6, 0):
            memory.append([psutil.Process(pid).memory_info().rss / 2**20 for pid in pids])
            await asyncio.sleep(pause_s)

    load = Load(cluster.url, rate=3 * CAPACITY)
    account = await load.run(seconds, weigh, at=5)
    begins, ends = load.began + CONNECTION_TIMEOUT_S, load.began + seconds
    accepted = [sent for sent in load.sent if sent.ok]
    goodput = sum(begins <= sent.ended <= ends for sent in accepted) / (ends - begins)
    until(cluster.nothing_in_flight, "all counts back at 0", 30)
    capacity = min(before, await most_per_second(cluster, 4), CAPACITY)
    growth = [last - first for first, last in zip(memory[0], memory[-1], strict=True)]
    seen = Overload(goodput, capacity, accepted, load.failed(), growth, pids, [one["pid"] for one in cluster.gateways()])
    note(
        f"{load.rate:g}/s for {seconds:g} s: {account}; goodput {goodput:.1f}/s of {CAPACITY:g}/s, or of {capacity:.1f}/s as "
        f"measured without overload; slowest answer {seen.slowest_s:.2f} s, slowest refusal {seen.longest_s:.2f} s; "
        f"the gateways' memory grew by {[round(mib) for mib in growth]} MiB"
    )
    return seen


async def test_three_times_the_capacity_is_refused_by_name_and_what_is_accepted_is_answered(busy: Cluster) -> None:
    seen = await overload(busy, 12)
    assert {(sent.status, sent.kind) for sent in seen.refused} == {(503, "overloaded")}
    assert all(int(sent.retry_after) >= 1 for sent in seen.refused)
    assert seen.goodput >= 0.5 * seen.capacity
    assert seen.longest_s < REQUEST_TIMEOUT_S, "refused before its time is over"
    assert max(seen.growth) < 20, "MiB that the overload has left behind"
    assert seen.after == seen.before, "no gateway died of it"
    after = Load(busy.url, rate=CAPACITY / 4)
    assert (await after.run(3)).ok == len(after.sent), "the overload is over"


@pytest.mark.measures
async def test_three_times_the_capacity_gets_the_capacity_and_quick_refusals(busy: Cluster) -> None:
    seen = await overload(busy, 30)
    assert seen.goodput >= 0.9 * seen.capacity
    assert seen.longest_s <= CONNECTION_TIMEOUT_S + SLACK_S
    assert seen.slowest_s <= CONNECTION_TIMEOUT_S + SERVICE_S + SLACK_S
    assert max(seen.growth) < 20, "MiB that 24 s of overload have left behind"


async def test_two_hundred_clients_that_say_nothing_hold_up_nobody_and_are_sent_away(busy: Cluster) -> None:
    half_said = b"POST /agents/my-agent/messages HTTP/1.1\r\nhost: a\r\n"
    connections = [await asyncio.open_connection("127.0.0.1", busy.port) for _ in range(SILENT)]
    began = time.monotonic()
    try:
        for _, writer in connections[: SILENT // 2]:
            writer.write(half_said)

        async def gone() -> list[bytes]:
            return await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in connections)), 45)

        waiting = asyncio.create_task(gone())
        load = Load(busy.url, rate=CAPACITY / 2)

        async def look() -> None:
            await asyncio.sleep(3)
            assert not waiting.done(), "they were to be there while others ask"

        note(f"{SILENT} clients say nothing: {await load.run(5, look)}")
        assert load.failed() == []
        answers = await waiting
        note(f"the last of them was sent away after {time.monotonic() - began:.1f} s")
        assert all(b" 408 " in answer.partition(b"\r\n")[0] for answer in answers[: SILENT // 2])
        assert set(answers[SILENT // 2 :]) == {b""}
    finally:
        for _, writer in connections:
            writer.close()
