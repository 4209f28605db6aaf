"""Debian's Prometheus scrapes a real cluster in trouble: every panel has data, every alert has a reason, Ray's endpoint too."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_serve_grafana_dashboard

from tests.integration.conftest import Cluster, get, until
from tests.prometheus import PROMETHEUS, PROMTOOL, Prometheus, panels, prometheus, rules, series

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(not PROMETHEUS, reason="Debian's package prometheus is not there")]

AGENTS = """
import asyncio
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from swiftclaw import Agent

FOLDER = Path({folder!r})
BAD = {bad!r}
shop, busy, broken = Agent("shop"), Agent("busy"), Agent("broken")


@shop.on_message
async def sell(message):
    if BAD:
        raise RuntimeError("a bad version")
    return message


@shop.health_check
async def check():
    if (FOLDER / "ill").exists() and not BAD:
        return {{"status": "unhealthy", "reason": "as it was meant to be"}}
    return {{"status": "healthy"}}


async def fragile(request):
    try:
        (FOLDER / "asked").touch(exist_ok=False)
    except FileExistsError:
        return PlainTextResponse("well")
    return PlainTextResponse("not the first time", 503)


shop.mount(Starlette(routes=[Route("/fragile", fragile)]))


@busy.on_message
async def wait(message):
    while not (FOLDER / "go").exists():
        await asyncio.sleep(0.1)
    return message


@broken.on_message
async def fail(message):
    raise RuntimeError("as it was meant to")
"""
CHECKS = {"interval": "1s", "unhealthyThreshold": 1, "healthyThreshold": 1}
LIMIT = 8


def write(cluster: Cluster, *, bad: bool = False) -> None:
    (cluster.folder / "watched.py").write_text(AGENTS.format(folder=str(cluster.folder), bad=bad))


@pytest.fixture(scope="module")
def watched(shared: Cluster) -> Cluster:
    write(shared)
    one = {"us-east-1": {"instances": 1}}
    never = {"failureThreshold": 100_000}
    shared.write(
        {
            "shop": {
                "agent": "watched:shop", "healthCheck": CHECKS, "circuitBreaker": never,
                "regions": {"us-east-1": {"instances": 2}, "eu-west-1": {"instances": 1}},
            },
            "busy": {
                "agent": "watched:busy", "regions": one, "limits": {"maxConnectionsPerInstance": 1},
                "rateLimit": {"enabled": True, "requests": LIMIT, "window": "1h"},
            },
            "broken": {"agent": "watched:broken", "regions": one, "circuitBreaker": {"resetTimeout": "1h"}},
        },
        distances={"us-east-1": {"eu-west-1": "80ms"}},
    )  # fmt: skip
    shared.up()
    return shared


async def ask(client: aiohttp.ClientSession, agent: str) -> int:
    async with client.post(f"/agents/{agent}/messages", json={"message": "hello"}) as answer:
        await answer.read()
        return answer.status


@asynccontextmanager
async def traffic(client: aiohttp.ClientSession, *agents: str) -> AsyncIterator[None]:
    async def for_ever(agent: str) -> None:
        while True:
            await ask(client, agent)
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(for_ever(agent)) for agent in agents]
    try:
        yield
    finally:
        for task in tasks:
            assert not task.done(), task
            task.cancel()


@asynccontextmanager
async def a_line_that_grows(cluster: Cluster, client: aiohttp.ClientSession) -> AsyncIterator[None]:
    """All that one user may ask at once, of an instance that takes one request at a time and does not finish it."""
    tasks = []
    for number in range(LIMIT):
        tasks.append(asyncio.create_task(ask(client, "busy")))
        if number:
            await asyncio.to_thread(until, partial(waits, cluster, number), f"{number} wait", 30)
    try:
        yield
    finally:
        (cluster.folder / "go").touch()
        assert await asyncio.gather(*tasks) == [200] * LIMIT


def waiting(cluster: Cluster) -> float:
    with urllib.request.urlopen(f"{cluster.admin}/metrics", timeout=10) as answer:
        (found,) = re.findall(r'^swiftclaw_queued_requests\{agent="busy"\} (\S+)$', answer.read().decode(), re.MULTILINE)
    return float(found)


def waits(cluster: Cluster, at_least: int) -> bool:
    return waiting(cluster) >= at_least


def lately(expression: str) -> str:
    """What the expression gave at some time in the last five minutes."""
    return f"({expression})[5m:500ms]"


async def values(server: Prometheus, expression: str) -> list[float]:
    return [float(one["value"][1]) for one in await server.query(expression)]


async def test_every_panel_and_every_alert_has_data_and_promtool_accepts_all_of_it(watched: Cluster, tmp_path: Path) -> None:
    write(watched, bad=True)
    alerts = rules()
    gone = alerts.pop("SwiftClawGone")
    alerts.pop("SwiftClawCrashLoop")  # takes longer than the rest together: test_crash_loop.py
    admin = f"127.0.0.1:{watched.admin_port}"
    ours = {"job_name": "swiftclaw", "honor_labels": True, "static_configs": [{"targets": [admin]}]}
    found = next(watched.folder.rglob("prom_metrics_service_discovery.json"))  # Ray writes it for whoever scrapes its nodes
    rays = {"job_name": "ray", "file_sd_configs": [{"files": [str(found)]}]}
    async with prometheus(tmp_path, [ours, rays]) as server, aiohttp.ClientSession(watched.url) as client:
        async with traffic(client, "shop", "broken"):
            deployed = await asyncio.to_thread(watched.run, "deploy", "shop", "--canary", "50")
            assert deployed.returncode == 0, deployed.stderr
            async with client.get("/agents/shop/fragile") as answer:
                assert (answer.status, answer.headers["x-swiftclaw-attempts"]) == (200, "2")
            async with a_line_that_grows(watched, client):
                assert await ask(client, "busy") == 429
                await server.until_data([alerts.pop("SwiftClawQueueGrows")])
            (watched.folder / "ill").touch()
            try:
                await asyncio.to_thread(until, lambda: ill(watched), "stable's instances are ill", 30)
                await server.until_data(alerts.values())
                await server.until_data(panels())
            finally:
                (watched.folder / "ill").unlink()
            down = await server.query(rules()["SwiftClawInstanceDown"])
            worse = await server.query(lately(rules()["SwiftClawCanaryWorse"]))
            assert {(one["metric"]["agent"], one["metric"]["version"]) for one in worse} == {("shop", "v2")}
            assert {one["metric"]["agent"] for one in down} <= {"shop"}
            opened = await server.query(rules()["SwiftClawCircuitOpen"])
            assert [one["metric"]["agent"] for one in opened] == ["broken"]
            assert await values(server, 'sum(swiftclaw_rate_limited_total{agent="busy"})') == [1]
            assert await values(server, 'sum(swiftclaw_retries_total{agent="shop"})') >= [1]
            await the_page_names_what_ray_has(server)
            await rays_serve_dashboard_shows_the_traffic(server)
            if PROMTOOL:
                promtool_accepts(f"{watched.admin}/metrics")
        os.kill(watched.controller_pid(), signal.SIGKILL)
        await server.until_data([lately(gone)])
        await asyncio.to_thread(until, lambda: get(f"{watched.admin}/api/status"), "another Controller")
        asked = set().union(*map(series, [*rules().values(), *panels()]))
        assert asked <= await server.names()
        evaluated = await server.rules()
        assert {alert: rule["health"] for alert, rule in evaluated.items()} == dict.fromkeys(rules(), "ok")


def ill(cluster: Cluster) -> bool:
    return all(row["state"] == "unhealthy" for row in cluster.instances("shop") if row["version"] == "v1")


async def the_page_names_what_ray_has(server: Prometheus) -> None:
    page = (Path(__file__).parents[2] / "docs/monitoring.md").read_text("utf-8")
    named = set(re.findall(r"`(ray_swiftclaw_\w+)`", page))
    await server.until_data([f'{name}{{job="ray"}}' for name in named])
    assert named == {name for name in await server.names() if name.startswith("ray_swiftclaw_")}


async def rays_serve_dashboard_shows_the_traffic(server: Prometheus) -> None:
    """The panels of requests, latency and errors, as Grafana evaluates them with every variable at All."""
    expressions = {
        re.sub(r"\$\w+", ".*", target["expr"])
        for panel in json.loads(generate_serve_grafana_dashboard()[0])["panels"]
        for target in panel["targets"]
        if re.match(r"(Error )?QPS|P\d\d latency", panel["title"]) and "_grpc_" not in target["expr"]
    }
    assert len(expressions) == 17
    await server.until_data([f"{expression} > 0" for expression in expressions], 90)
    by_route = 'sum(rate(ray_serve_num_http_requests_total{application=~"shop.*"}[5m])) by (application, route)'
    found = {tuple(sorted(one["metric"].items())) for one in await server.query(by_route)}
    assert {dict(labels)["route"] for labels in found} == {"/agents/shop"}
    assert {"shop.v1.us-east-1", "shop.v2.us-east-1"} <= {dict(labels)["application"] for labels in found}


def promtool_accepts(url: str) -> None:
    with urllib.request.urlopen(url, timeout=10) as answer:
        done = subprocess.run(["promtool", "check", "metrics"], input=answer.read(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
