"""What can be seen of a real cluster: the dashboard in a browser, the events, the metrics here and at Ray's own endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.browser import CHROMIUM, browser
from tests.integration.conftest import Cluster, get, until

pytestmark = pytest.mark.cluster

LIVE = "document.querySelector('#connection').dataset.state === 'live'"
STATES = """Object.fromEntries([...document.querySelectorAll('tbody tr')]
            .filter(row => row.dataset.key?.startsWith('instance-'))
            .map(row => [row.children[0].innerText, row.children[3].innerText]))"""


def metrics(url: str) -> dict[tuple[str, str], float]:
    """(name, labels) -> value of every sample."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: dict[tuple[str, str], float], name: str) -> float:
    return sum(value for (found, _), value in samples.items() if found == name)


def ask(cluster: Cluster, count: int) -> int:
    """That many requests, one after the other; how many were answered with 200."""

    async def all_of_them() -> int:
        ok = 0
        async with aiohttp.ClientSession(cluster.url) as client:
            for number in range(count):
                async with client.post("/agents/my-agent/messages", json={"message": str(number)}) as answer:
                    ok += answer.status == 200
                    await answer.read()
        return ok

    return asyncio.run(all_of_them())


def test_requests_are_counted_to_the_request_everywhere(cluster: Cluster) -> None:
    before = total(metrics(f"{cluster.admin}/metrics"), "swiftclaw_requests_total")
    assert ask(cluster, 60) == 60
    until(
        lambda: total(metrics(f"{cluster.admin}/metrics"), "swiftclaw_requests_total") == before + 60,
        "60 more requests are counted",
    )
    samples = metrics(f"{cluster.admin}/metrics")
    assert total(samples, "swiftclaw_routing_seconds_count") == total(samples, "swiftclaw_request_duration_seconds_count")
    load = get(f"{cluster.admin}/api/agents/my-agent/load")
    assert load["total"] == sum(row["requests"] for row in load["instances"]) >= 60
    counted = sum(row["requests"] for row in get(f"{cluster.admin}/api/agents/my-agent/instances"))
    assert counted == before + 60
    shown = json.loads(cluster.run("metrics", "my-agent", "--json").stdout)
    assert shown["agent"] == "my-agent" and len(shown["instances"]) == 7


@pytest.mark.skipif(not shutil.which("promtool"), reason="Debian's package prometheus has promtool")
def test_promtool_accepts_the_metrics(cluster: Cluster) -> None:
    ask(cluster, 10)
    with urllib.request.urlopen(f"{cluster.admin}/metrics", timeout=10) as answer:
        done = subprocess.run(["promtool", "check", "metrics"], input=answer.read(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_main_series_are_at_rays_own_metrics_endpoint(cluster: Cluster) -> None:
    ask(cluster, 10)
    listing = """
import json, ray
ray.init(address="auto", logging_level="ERROR")
print(json.dumps([[node["NodeManagerAddress"], node["MetricsExportPort"]] for node in ray.nodes()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", listing], env=cluster.inside, capture_output=True, text=True, timeout=120, check=True
    )
    endpoints = json.loads(done.stdout.splitlines()[-1])

    def seen() -> bool:
        samples = [metrics(f"http://{host}:{port}/metrics") for host, port in endpoints]
        names = {name for some in samples for name, _ in some}
        wanted = {"ray_swiftclaw_requests_total", "ray_swiftclaw_instance_up", "ray_swiftclaw_active_connections"}
        requests = sum(total(some, "ray_swiftclaw_requests_total") for some in samples)
        return wanted <= names and requests == total(metrics(f"{cluster.admin}/metrics"), "swiftclaw_requests_total")

    until(seen, "Ray's endpoints have what the Controller has", 60)


@asynccontextmanager
async def traffic(cluster: Cluster) -> AsyncIterator[None]:
    async def ask_for_ever() -> None:
        async with aiohttp.ClientSession(cluster.url) as client:
            while True:
                async with client.post("/agents/my-agent/messages", json={"message": "hello"}) as answer:
                    await answer.read()
                await asyncio.sleep(0.05)

    task = asyncio.create_task(ask_for_ever())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
async def test_the_page_follows_a_killed_instance_and_a_killed_controller(cluster: Cluster) -> None:
    address = (await asyncio.to_thread(cluster.run, "dashboard", "my-agent", "--view", "health")).stdout.strip()
    assert address.startswith(f"{cluster.admin}/dashboard?agent=my-agent")
    async with traffic(cluster), browser() as tab:
        await tab.open(address)
        await tab.until(f"{LIVE} && Object.values({STATES}).filter(state => state === 'healthy').length === 7")
        known = await asyncio.to_thread(cluster.healthy)
        os.kill(known["instance-2"], signal.SIGKILL)
        await tab.until(f"({STATES})['instance-2'] !== 'healthy'")
        await tab.until(
            "[...document.querySelectorAll('.events li')].some(one => one.innerText.includes('instance-2 is gone'))"
        )
        await tab.until(f"({STATES})['instance-2'] === 'healthy'", 60)
        assert tab.errors == []
        os.kill(await asyncio.to_thread(cluster.controller_pid), signal.SIGKILL)
        await tab.until("document.querySelector('#connection').dataset.state === 'lost'")
        await tab.until(f"{LIVE} && Object.values({STATES}).filter(state => state === 'healthy').length === 7", 90)
        assert [url for url in tab.urls if not url.startswith((cluster.admin, "data:", "about:"))] == []
