"""Two gateways, one count: sessions that lost their instance, and the requests in the series of Ray's Serve dashboards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import urllib.request
from collections import Counter
from functools import partial

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Cluster, get, until

pytestmark = pytest.mark.cluster

AGENT = """
import os

from swiftclaw import Agent

agent = Agent("counted")


@agent.on_message
async def handle(message):
    if message == "fail":
        raise RuntimeError("as it was meant to")
    return str(os.getpid())
"""
SESSIONS = 40


@pytest.fixture(scope="module")
def counted(shared: Cluster) -> Cluster:
    (shared.folder / "counted.py").write_text(AGENT)
    agent = {
        "agent": "counted:agent",
        "regions": {"us-east-1": {"instances": 3}},
        "resources": {"cpus": 0.01},
        "circuitBreaker": {"failureThreshold": 100_000},
        "loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}},
    }
    shared.write({"counted": agent})
    shared.up()
    return shared


async def ask(cluster: Cluster, session: str, message: str = "hello") -> tuple[int, str]:
    """(status, reply) on a connection of its own: whichever gateway accepts it."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(cluster.url, connector=connector) as client:
        body, headers = {"message": message}, {"x-session-id": session}
        async with client.post("/agents/counted/messages", json=body, headers=headers) as answer:
            return answer.status, str((await answer.json()).get("reply"))


async def ask_all(cluster: Cluster, message: str = "hello") -> dict[str, tuple[int, str]]:
    """Every session twice at the same moment."""
    sessions = [f"s{number}" for number in range(SESSIONS)]
    await asyncio.gather(*(ask(cluster, session, message) for session in sessions))
    return dict(zip(sessions, await asyncio.gather(*(ask(cluster, session, message) for session in sessions)), strict=True))


def moved(cluster: Cluster) -> dict[str, float]:
    """Sessions that moved, by cause; causes without any left out."""
    with urllib.request.urlopen(f"{cluster.admin}/metrics", timeout=10) as answer:
        rows = re.findall(
            r'^swiftclaw_sessions_moved_total\{agent="counted",cause="(\w+)"\} (\S+)$', answer.read().decode(), re.M
        )
    return {cause: float(count) for cause, count in rows if float(count)}


def of_ray(cluster: Cluster, name: str, app: str = "counted.v1.us-east-1") -> Counter[str]:
    """The series at all of Ray's metrics endpoints: sums by route and code."""
    sums: Counter[str] = Counter()
    listed = next(cluster.folder.rglob("prom_metrics_service_discovery.json"))
    for target in {target for group in json.loads(listed.read_text()) for target in group["targets"]}:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name == name and sample.labels.get("application") == app:
                        code = sample.labels.get("status_code") or sample.labels.get("error_code", "")
                        sums[f"{sample.labels.get('route', '')} {code}".strip()] += int(sample.value)
    return sums


def has(cluster: Cluster, series: str, expected: dict[str, int]) -> bool:
    return of_ray(cluster, series) == expected


async def test_requests_and_moved_sessions_are_counted_once_whichever_gateways_saw_them(counted: Cluster) -> None:
    homes = {session: reply for session, (_, reply) in (await ask_all(counted)).items()}
    assert len(set(homes.values())) == 3
    assert {status for status, _ in (await ask_all(counted, "fail")).values()} == {500}

    total = {"/agents/counted 200": 2 * SESSIONS, "/agents/counted 500": 2 * SESSIONS}
    await asyncio.to_thread(until, lambda: of_ray(counted, "ray_serve_num_http_requests_total") == total, "Ray has them", 40)
    assert of_ray(counted, "ray_serve_num_http_error_requests_total") == {"/agents/counted 500": 2 * SESSIONS}
    assert of_ray(counted, "ray_serve_http_request_latency_ms_count") == {"/agents/counted": 4 * SESSIONS}
    for name in ("request", "error"):  # the instances' own
        series, expected = f"ray_serve_deployment_{name}_counter_total", {"/agents/counted": 2 * SESSIONS}
        await asyncio.to_thread(until, partial(has, counted, series, expected), f"Ray has {series}", 40)
    assert sum(of_ray(counted, "ray_serve_replica_processing_queries").values()) == 0

    victim = Counter(homes.values()).most_common(1)[0][0]
    lost = {session for session, home in homes.items() if home == victim}
    os.kill(int(victim), signal.SIGKILL)
    after = {session: reply for session, (_, reply) in (await ask_all(counted)).items()}
    assert {session for session in homes if after[session] != homes[session]} == lost
    await asyncio.to_thread(until, lambda: moved(counted), "the moves are reported", 20)
    await asyncio.sleep(2)  # all gateways have reported
    assert moved(counted) == {"died": len(lost)}
    events = f"{counted.admin}/api/events?kind=session&agent=counted"
    await asyncio.to_thread(until, lambda: get(events), "one event", 30)
    (event,) = get(events)
    assert event["details"] == {"cause": "died", "count": len(lost)}
