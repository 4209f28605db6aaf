"""The dashboard in a real browser, over a stand-in cluster: what it shows, how it fails, who can use it, how quick it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.admin.app import AdminApp
from cluster.desired.rollout_transitions import CanaryState, Version
from cluster.transport.listener import Listener, bind
from tests.browser import CHROMIUM, Tab, browser
from tests.cluster.stand_in import REGIONS, Port, StandIn, seven

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")

AXE = Path(__file__).parents[3] / "node_modules/axe-core/axe.min.js"
VIEWS = ("load", "health", "latency", "rollout", "limits")
SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
LIVE = "document.querySelector('#connection').dataset.state === 'live'"
ROWS = """[...document.querySelectorAll('tbody tr')].filter(row => row.dataset.key?.startsWith('instance-'))
          .map(row => [...row.children].map(cell => cell.innerText.trim()))"""


@pytest.fixture
async def tab(port: Port) -> AsyncIterator[Tab]:
    """Whatever is looked at: no complaint in the console, and nothing from another host."""
    async with browser() as tab:
        yield tab
        assert tab.errors == []
        assert [url for url in tab.urls if not url.startswith((port.url, "data:", "about:"))] == []


async def look(tab: Tab, port: Port, view: str = "load", **screen: Any) -> None:
    await tab.open(f"{port.url}/dashboard?agent=my-agent&view={view}", **screen)
    await tab.until(LIVE)


def row(number: int, column: int) -> str:
    return f"({ROWS})[{number - 1}]?.[{column}]"


@asynccontextmanager
async def going_on(cluster: StandIn, per_second: float) -> AsyncIterator[None]:
    """Load that does not stop."""

    async def serve_for_ever() -> None:
        while True:
            await asyncio.sleep(1 - time.time() % 1)
            cluster.serve_second(time.monotonic(), per_second)
            cluster.sample(time.time())

    task = asyncio.create_task(serve_for_ever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(("width", "theme"), SCREENS)
async def test_every_view_fits_the_screen_and_whoever_looks(port: Port, tab: Tab, width: int, theme: str) -> None:
    port.cluster.serve(90, 3, errors=0.1)
    port.cluster.registry.judge("us-east-1-0", False, "database", time.time())
    for view in VIEWS:
        await look(tab, port, view, width=width, theme=theme)
        await tab.until("document.querySelectorAll('#panel .card').length >= 2")
        assert await tab.evaluate("document.documentElement.dataset.theme") == theme
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width
        assert await tab.evaluate("document.querySelector('[role=tab][aria-selected=true]').dataset.view") == view
        if view != "limits":
            await tab.until("document.querySelectorAll('.uplot canvas').length >= 1")
        if AXE.is_file():
            assert await violations(tab) == [], view


async def violations(tab: Tab) -> list[str]:
    """What axe-core finds serious."""
    await tab.evaluate(AXE.read_text("utf-8") + "; 0")
    found = await tab.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(found => JSON.stringify(found.violations))"
    )
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in json.loads(found)
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.skipif(not AXE.is_file(), reason="there is no axe-core")
async def test_what_is_serious_would_be_found(port: Port, tab: Tab) -> None:
    await look(tab, port)
    await tab.evaluate("document.querySelector('#agent').closest('label').replaceWith(document.querySelector('#agent')); 0")
    assert any(found.startswith("select-name") for found in await violations(tab))


async def test_the_load_view_shows_the_numbers_of_the_api(port: Port, tab: Tab) -> None:
    made = port.cluster.serve(50, 4, errors=0.2)
    await look(tab, port, "load")
    await tab.until(f"document.querySelector('[data-figure^=Requests\\\\,]').innerText === '{made:,}'")
    load = await port.get("/api/agents/my-agent/load")
    shown = await tab.evaluate(ROWS)
    assert [(one[0], one[1], one[2], one[3], one[4]) for one in shown] == [
        (one["id"], one["region"], one["version"], f"{one['share']:.1f} %", str(one["requests"])) for one in load["instances"]
    ]
    matrix = await tab.evaluate("document.querySelector('.matrix').innerText")
    assert all(region in matrix for region in REGIONS) and "2 of 2 healthy" in matrix and "estimated" in matrix


async def test_the_latency_and_limits_views_show_the_numbers_of_the_api(port: Port, tab: Tab) -> None:
    port.cluster.serve(50, 4)
    await look(tab, port, "latency")
    instances = await port.get("/api/agents/my-agent/instances")
    await tab.until(f"({ROWS}).length === 7")

    def said(ms: float) -> str:
        return f"{round(ms, 1):g} ms" if ms < 10 else f"{round(ms)} ms"

    shown = await tab.evaluate(ROWS)
    assert [one[4:6] for one in shown] == [[said(one["p50_ms"]), said(one["p95_ms"])] for one in instances]
    port.cluster.totals.refusals["my-agent", 429] = 12
    port.cluster.totals.refusals["my-agent", 503] = 3
    await look(tab, port, "limits")
    await tab.until("document.querySelector('.side').innerText.includes('12 since')")
    assert "3 since" in await tab.evaluate("document.querySelector('.side').innerText")


async def test_it_follows_an_instance_that_falls_ill_and_recovers(port: Port, tab: Tab) -> None:
    await look(tab, port, "health")
    await tab.until(f"{row(2, 3)} === 'healthy'")
    port.cluster.registry.judge("us-east-1-1", False, "database", time.time())
    await tab.until(f"{row(2, 3)} === 'unhealthy' && {row(2, 6)} === 'database'")
    await tab.until("document.querySelector('.events li')?.innerText.includes('instance-2 is unhealthy: database')")
    port.cluster.registry.judge("us-east-1-1", True, "", time.time())
    await tab.until(f"{row(2, 3)} === 'healthy'")
    port.cluster.registry.remove("us-east-1-1")
    await tab.until(f"({ROWS}).length === 6")


async def test_it_shows_the_canarys_share_moving(port: Port, tab: Tab) -> None:
    rollouts = port.cluster.rollouts.rollouts

    def share(percent: float) -> None:
        canary = CanaryState(
            Version("v2", {"agent": "m:agent"}),
            target=50,
            percent=percent,
            changed_at=time.time(),
            deadline_at=time.time() + 60,
        )
        rollouts["my-agent"] = replace(rollouts["my-agent"], canary=canary)

    share(10)
    port.cluster.start_instance("my-agent", "canary", "us-east-1", "v2")
    port.cluster.serve(20, 2)
    await look(tab, port, "rollout")
    text = "document.querySelector('section[data-version=\"{}\"]')?.innerText"
    await tab.until(f"{text.format('v2')}?.includes('10 %') && {text.format('v1')}.includes('90 %')")
    assert "stable" in await tab.evaluate(text.format("v1")) and "canary" in await tab.evaluate(text.format("v2"))
    assert "v2 receives 50 %" in await tab.evaluate("document.querySelector('#panel').innerText")
    share(50)
    await tab.until(f"{text.format('v2')}?.includes('50 %')")


async def test_it_survives_a_controller_that_restarts(tmp_path: Path) -> None:
    cluster = seven(tmp_path / "before")
    listener = Listener(AdminApp(cluster.view).app(), bind("127.0.0.1", 0), grace_s=0)
    await listener.start()
    number = listener.port
    async with browser() as tab:
        await tab.open(f"http://127.0.0.1:{number}/dashboard?agent=my-agent&view=health")
        await tab.until(LIVE)
        await listener.close()
        await tab.until("document.querySelector('#connection').dataset.state === 'lost'")
        said = await tab.evaluate("document.querySelector('#banner').innerText")
        assert "Lost the connection to the Controller" in said and "Values shown are from" in said
        assert len(await tab.evaluate(ROWS)) == 7
        cluster = seven(tmp_path / "after")
        listener = Listener(AdminApp(cluster.view).app(), bind("127.0.0.1", number), grace_s=0)
        await listener.start()
        try:
            await tab.until(f"{LIVE} && document.querySelector('#banner').hidden")
            cluster.registry.judge("us-east-1-0", False, "after the restart", time.time())
            await tab.until("document.querySelector('.events li')?.innerText.includes('after the restart')")
            refused = "net::ERR_CONNECTION_REFUSED", "net::ERR_INCOMPLETE_CHUNKED_ENCODING", "net::ERR_EMPTY_RESPONSE"
            assert [error for error in tab.errors if not any(known in error for known in refused)] == []
        finally:
            await listener.close()


async def test_it_says_so_when_there_is_no_agent_no_such_agent_or_no_traffic(port: Port, tab: Tab, tmp_path: Path) -> None:
    await look(tab, port)
    await tab.until("document.querySelector('#panel').innerText.includes('No requests in this time range.')")
    await tab.open(f"{port.url}/dashboard?agent=nobody")
    await tab.until("document.querySelector('#banner').innerText.includes('Unknown agent: nobody')")
    none = Listener(AdminApp(StandIn(tmp_path / "none", {}).view).app(), bind("127.0.0.1", 0), grace_s=0)
    await none.start()
    await tab.open(f"http://127.0.0.1:{none.port}/dashboard")
    await tab.until("document.querySelector('#panel').innerText.includes('No agents are running')")
    await none.close()
    await tab.open("about:blank#")
    tab.urls.clear()
    tab.errors.clear()  # the closed port


async def test_keys_choose_a_view_and_the_address_remembers(port: Port, tab: Tab) -> None:
    await look(tab, port, "load")
    await tab.evaluate("document.querySelector('#tab-load').focus(); 0")
    await tab.press("ArrowRight")
    await tab.until("document.activeElement.id === 'tab-health' && document.querySelector('#tab-health').tabIndex === 0")
    await tab.evaluate("document.querySelector('input[value=\"15m\"]').click(); 0")
    await tab.until("location.search.includes('view=health') && location.search.includes('range=15m')")


async def test_paused_it_keeps_what_it_shows(port: Port, tab: Tab) -> None:
    await look(tab, port, "health")
    await tab.until(f"{row(1, 3)} === 'healthy'")
    await tab.evaluate("document.querySelector('#pause').click(); 0")
    assert (await tab.evaluate("document.querySelector('#connection').innerText")).startswith("Paused at")
    before = len(tab.urls)
    port.cluster.registry.judge("us-east-1-0", False, "database", time.time())
    later = await port.get("/api/agents/my-agent/live?once=1")
    await tab.until(f"Date.now() / 1000 > {later['at'] + 2}")  # two frames later
    assert await tab.evaluate(row(1, 3)) == "healthy" and len(tab.urls) == before
    await tab.evaluate("document.querySelector('#pause').click(); 0")
    await tab.until(f"{row(1, 3)} === 'unhealthy'")


async def test_the_theme_that_was_chosen_is_remembered(port: Port, tab: Tab) -> None:
    await look(tab, port, theme="light")
    await tab.evaluate("document.querySelector('#theme').click(); 0")
    await look(tab, port, theme="light")
    assert await tab.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.measures
async def test_with_two_hundred_instances_it_stays_responsive(tmp_path: Path) -> None:
    """The browser's own measure of the time between frames, while 1,000 requests/s are recorded."""
    cluster = StandIn(tmp_path, {"my-agent": {"regions": {region: {"instances": 70} for region in REGIONS}}})
    for number in range(200):
        cluster.start_instance("my-agent", f"r{number}", REGIONS[number % 3])
    cluster.serve(100, 5)
    listener = Listener(AdminApp(cluster.view).app(), bind("127.0.0.1", 0), grace_s=0)
    await listener.start()
    measure = """new Promise(done => { const gaps = []; let last = performance.now(); const end = last + 6000;
      const frame = now => { gaps.push(now - last); last = now; now < end ? requestAnimationFrame(frame) : done(gaps); };
      requestAnimationFrame(frame); })"""
    try:
        async with going_on(cluster, 5), browser() as tab:
            await tab.open(f"http://127.0.0.1:{listener.port}/dashboard?agent=my-agent&view=load")
            await tab.until(f"({ROWS}).length === 200")
            seen: list[float] = []
            while not seen or (len(seen) < 12 and min(seen) >= 50):  # other work on the machine is not the page's
                gaps = sorted(await tab.evaluate(measure))
                seen.append(gaps[int(0.95 * len(gaps))])
            assert tab.errors == []
            assert min(seen) < 50
    finally:
        await listener.close()
