"""From one command to answers: what a newcomer does, on real Ray nodes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import aiohttp
import openai
import psutil
import pytest

from tests.integration.conftest import REGIONS, Cluster, get, my_agent, until

pytestmark = pytest.mark.cluster

MB = 1_000_000


async def ask(client: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with client.post(f"{url}/agents/my-agent/messages", json={"message": "hi"}) as response:
        await response.read()
        return response.status, response.headers.get("x-swiftclaw-instance", "")


async def spread(cluster: Cluster, requests: int, connections: int) -> Counter[str]:
    """Who answered, one request after the other on each connection."""
    counted: Counter[str] = Counter()

    async def one(count: int) -> None:
        async with aiohttp.ClientSession() as client:
            for _ in range(count):
                status, instance = await ask(client, cluster.url)
                assert status == 200
                counted[instance] += 1

    await asyncio.gather(*(one(requests // connections) for _ in range(connections)))
    return counted


def test_every_instance_is_healthy_in_its_region_on_a_node_of_its_own(cluster: Cluster) -> None:
    rows = cluster.instances()
    assert Counter(row["region"] for row in rows) == REGIONS
    assert {row["state"] for row in rows} == {"healthy"}
    assert sorted(row["id"] for row in rows) == [f"instance-{n}" for n in range(1, 8)]
    assert len({row["node"] for row in rows}) == 3, "one Ray node per region"
    assert len({(row["region"], row["node"]) for row in rows}) == 3


def test_up_again_says_the_same_and_restarts_nothing(cluster: Cluster) -> None:
    before, gateways = cluster.healthy(), {gateway["pid"] for gateway in cluster.gateways()}
    done = cluster.up()
    for text in (*before, *REGIONS, cluster.url):
        assert text in done.stdout
    assert cluster.healthy() == before
    assert {gateway["pid"] for gateway in cluster.gateways()} == gateways


def test_the_printed_curl_answers(cluster: Cluster) -> None:
    command = next(line for line in cluster.up().stdout.splitlines() if line.strip().startswith("curl"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert "reply" in json.loads(done.stdout)


@pytest.mark.parametrize(("connections", "tolerance"), [(1, 1), (14, 2)])
async def test_700_requests_land_evenly(cluster: Cluster, connections: int, tolerance: int) -> None:
    """One connection is one gateway; many are shared between the two."""
    counted = await spread(cluster, 700, connections)
    assert len(counted) == 7
    assert all(abs(count - 100) <= tolerance for count in counted.values()), counted


def test_the_openai_client_lists_chats_and_streams(cluster: Cluster) -> None:
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["my-agent"]
    asked: Any = {"model": "my-agent", "messages": [{"role": "user", "content": "my order number is 1042"}], "user": "ada"}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert whole and len(pieces) > 2 and "1042" in "".join(pieces)


async def test_a_websocket_echoes_through_a_mounted_app(cluster: Cluster) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(f"{cluster.url}/agents/my-agent/ws") as socket,
    ):
        for text in ("hello", "ümlaut"):
            await socket.send_str(text)
            assert text in await socket.receive_str()


async def test_50_mb_up_and_down_pass_through_a_gateway_that_stays_small(cluster: Cluster) -> None:
    await spread(cluster, 28, 14)  # both gateways have their buffers and pools by now
    processes = [psutil.Process(gateway["pid"]) for gateway in cluster.gateways()]
    before = [process.memory_info().rss for process in processes]

    async def pieces() -> Any:
        for _ in range(50):
            yield b"x" * MB

    async with aiohttp.ClientSession() as client:
        async with client.post(f"{cluster.url}/agents/my-agent/upload", data=pieces()) as response:
            assert response.status == 200
            assert str(50 * MB) in await response.text()
        async with client.get(f"{cluster.url}/agents/my-agent/download/{50 * MB}") as response:
            received = 0
            async for piece in response.content.iter_any():
                received += len(piece)
    assert received == 50 * MB
    grown = [process.memory_info().rss - rss for process, rss in zip(processes, before, strict=True)]
    assert max(grown) < 20 * MB, grown


async def test_a_client_that_leaves_mid_stream_leaves_no_count(cluster: Cluster) -> None:
    async with aiohttp.ClientSession() as client:
        url = f"{cluster.url}/agents/my-agent/download/{500 * MB}"
        response = await client.get(url)
        await response.content.readany()
        response.close()
    until(cluster.nothing_in_flight, "all counts back at 0", 30)


def test_python_callers_ask_and_stream_through_a_gateway(cluster: Cluster) -> None:
    script = """
import asyncio
from swiftclaw import connect
from swiftclaw.client import AgentError
async def main():
    agent = connect("my-agent")
    await agent.ask("my order number is 1042", session_id="p1")
    print("".join([text async for text in agent.stream("hello")]) != "")
    try:
        await connect("nobody").ask("hi")
    except AgentError as error:
        print(error.status, error.type)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=cluster.inside, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "404", "unknown_agent"], done.stderr


def test_an_instance_answers_gateways_only_and_on_loopback_only(cluster: Cluster) -> None:
    state = json.loads((cluster.folder / ".swiftclaw" / "state.json").read_text())
    for instance in state["instances"]:
        host, port = instance["registration"]["host"], instance["registration"]["port"]
        assert host == "127.0.0.1", "the address of its node"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{host}:{port}/messages", data=b"{}", timeout=10)
        assert refused.value.code == 403


def test_healthz_and_routes_are_those_of_serves_proxies(cluster: Cluster) -> None:
    assert get(f"{cluster.url}/-/healthz") == "success"
    assert get(f"{cluster.url}/-/routes") == {"/agents/my-agent": "my-agent"}


def test_metrics_count_what_was_answered(cluster: Cluster) -> None:
    def counted() -> float:
        lines = [line for line in get(f"{cluster.admin}/metrics").splitlines() if line.startswith("swiftclaw_requests_total")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if 'code="200"' in line)

    until(cluster.nothing_in_flight, "all counts back at 0", 30)
    before = counted()
    for _ in range(5):
        get(f"{cluster.url}/agents/my-agent/orders/1042")
    until(lambda: counted() == before + 5, "five more requests in /metrics", 30)


def test_status_and_instances_as_json_are_what_the_api_gives(cluster: Cluster) -> None:
    done = cluster.run("instances", "my-agent", "--json")
    assert {row["id"] for row in json.loads(done.stdout)} == set(cluster.healthy())
    assert cluster.run("status").returncode == 0


def test_another_count_is_applied_without_touching_the_others(cluster: Cluster) -> None:
    before = cluster.healthy()
    agent = my_agent()
    agent["regions"]["eu-west-1"]["instances"] = 3
    cluster.write({"my-agent": agent})
    cluster.up()
    after = cluster.healthy()
    assert len(after) == 8 and before.items() <= after.items()
    cluster.write({"my-agent": my_agent()})
    cluster.up()
    until(lambda: len(cluster.instances()) == 7, "the eighth instance gone", 60)
    kept = cluster.healthy()
    assert kept.items() <= after.items(), "one drained, none restarted"


def test_a_rotated_key_still_accepts_the_cookies_of_the_one_before(cluster: Cluster) -> None:
    agent = my_agent(loadBalancing={"sessionAffinity": {"enabled": True}})
    cluster.write({"my-agent": agent})
    cluster.up()

    def ask(cookie: str = "") -> tuple[str, str]:
        """(the cookie that is set, if any; the session)"""
        asked = urllib.request.Request(
            f"{cluster.url}/agents/my-agent/messages",
            data=b'{"message": "hi"}',
            headers={"content-type": "application/json", **({"cookie": cookie} if cookie else {})},
        )
        with urllib.request.urlopen(asked, timeout=30) as response:
            return (response.headers["set-cookie"] or "").partition(";")[0], json.load(response)["session_id"]

    cookie, session = until(lambda: (pair := ask())[0] and pair, "affinity is on", 30)
    assert ask(cookie) == ("", session)
    keys = (cluster.folder / ".swiftclaw" / "session-keys").read_text().split()
    done = cluster.run("rotate-key")
    assert done.returncode == 0, done.stderr
    rotated = (cluster.folder / ".swiftclaw" / "session-keys").read_text().split()
    assert rotated[1] == keys[0] and rotated[0] != keys[0]
    assert ask(cookie)[1] == session
