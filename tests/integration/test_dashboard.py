"""What can be seen of a real cluster: the dashboard in a browser, the events, the metrics here and at Ray's own endpoint."""

from __future__ import annotations

import asyncio
import json
import os
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
from tests.integration.conftest import REGIONS, Cluster, get, my_agent, until

pytestmark = pytest.mark.cluster

AGENT = "watched"
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
    """Of the agent that is watched: others were here before."""
    return sum(value for (found, labels), value in samples.items() if found == name and json.loads(labels)["agent"] == AGENT)


@pytest.fixture(scope="module")
def cluster(shared: Cluster) -> Cluster:
    """The shipped example with an instance per region, under a name that nothing was counted for before."""
    soon = {"request": "4s"}  # as long as sessions keep an instance that drains
    shared.write({AGENT: my_agent(regions={region: {"instances": 1} for region in REGIONS}, timeouts=soon)})
    shared.up()
    return shared


def ask(cluster: Cluster, count: int) -> int:
    """That many requests, one after the other; how many were answered with 200."""

    async def all_of_them() -> int:
        ok = 0
        async with aiohttp.ClientSession(cluster.url) as client:
            for number in range(count):
                async with client.post(f"/agents/{AGENT}/messages", json={"message": str(number)}) as answer:
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
    load = get(f"{cluster.admin}/api/agents/{AGENT}/load")
    assert load["total"] == sum(row["requests"] for row in load["instances"]) >= 60
    counted = sum(row["requests"] for row in get(f"{cluster.admin}/api/agents/{AGENT}/instances"))
    assert counted == before + 60
    shown = json.loads(cluster.run("metrics", AGENT, "--json").stdout)
    assert shown["agent"] == AGENT and len(shown["instances"]) == len(REGIONS)


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
                async with client.post(f"/agents/{AGENT}/messages", json={"message": "hello"}) as answer:
                    await answer.read()
                await asyncio.sleep(0.05)

    task = asyncio.create_task(ask_for_ever())
    try:
        yield
    finally:
        task.cancel()


FACTS = """Object.fromEntries([...document.querySelectorAll('section[data-version]')].map(card => [card.dataset.version,
           Object.fromEntries([...card.querySelectorAll('dt')].map(dt => [dt.innerText, dt.nextElementSibling.innerText]))]))"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
async def test_the_rollout_view_shows_a_canarys_share_moving(cluster: Cluster) -> None:
    with (cluster.folder / "examples/support.py").open("a") as code:
        code.write("\n# another version\n")
    async with traffic(cluster), browser() as tab:
        await tab.open(f"{cluster.admin}/dashboard?agent={AGENT}&view=rollout")
        await tab.until(f"{LIVE} && Object.keys({FACTS}).join() === 'v1'")
        for command, percent in (("deploy", 20), ("promote", 50)):
            done = await asyncio.to_thread(cluster.run, command, AGENT, "--canary", str(percent))
            assert done.returncode == 0, done.stderr
            await tab.until(f"({FACTS}).v2?.Weight === '{percent} %'")
            answer = await asyncio.to_thread(get, f"{cluster.admin}/api/agents/{AGENT}")
            wanted = {
                one["version"]: (f"{one['weight']:g} %", f"{one['healthy']} of {one['instances']} healthy")
                for one in answer["versions"]
            }
            assert wanted["v1"][0] == f"{100 - percent} %" and wanted["v2"][0] == f"{percent} %"
            shown = await tab.evaluate(FACTS)
            assert {version: (facts["Weight"], facts["Instances"]) for version, facts in shown.items()} == wanted
            rates = f"Object.values({FACTS}).map(facts => parseFloat(facts['Requests/s']))"
            share = f"({rates}).length === 2 && 100 * ({rates})[1] / (({rates})[0] + ({rates})[1])"
            await tab.until(f"Math.abs({share} - {percent}) < 10")
        events = "[...document.querySelectorAll('.events li')].map(one => one.innerText)"
        await tab.until(f"{events}.some(one => one.includes('v2') && one.includes('50 %'))")
        done = await asyncio.to_thread(cluster.run, "rollback", AGENT)
        assert done.returncode == 0, done.stderr
        await tab.until(f"Object.keys({FACTS}).join() === 'v1' && ({FACTS}).v1.Weight === '100 %'", 60)
        assert tab.errors == []


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
async def test_the_page_follows_a_killed_instance_and_a_killed_controller(cluster: Cluster) -> None:
    address = (await asyncio.to_thread(cluster.run, "dashboard", AGENT, "--view", "health")).stdout.strip()
    assert address.startswith(f"{cluster.admin}/dashboard?agent={AGENT}")
    async with traffic(cluster), browser() as tab:
        await tab.open(address)
        await tab.until(f"{LIVE} && Object.values({STATES}).filter(state => state === 'healthy').length === 3")
        known = await asyncio.to_thread(cluster.healthy, AGENT)
        os.kill(known["instance-2"], signal.SIGKILL)
        await tab.until(f"({STATES})['instance-2'] !== 'healthy'")
        await tab.until(
            "[...document.querySelectorAll('.events li')].some(one => one.innerText.includes('2 stopped unexpectedly'))"
        )
        await tab.until(f"({STATES})['instance-2'] === 'healthy'", 60)
        assert tab.errors == []
        os.kill(await asyncio.to_thread(cluster.controller_pid), signal.SIGKILL)
        await tab.until("document.querySelector('#connection').dataset.state === 'lost'")
        await tab.until(f"{LIVE} && Object.values({STATES}).filter(state => state === 'healthy').length === 3", 90)
        assert [url for url in tab.urls if not url.startswith((cluster.admin, "data:", "about:"))] == []
