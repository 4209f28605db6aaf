"""The admin port over HTTP: shapes of the contract, streams that resume, and answers that stay quick with 200 instances."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from cluster.admin.app import AdminApp
from cluster.admin.prometheus import exposition
from cluster.messages import Observation, StartRequest
from cluster.transport.listener import Listener, bind
from swiftclaw.cli.output import tables
from tests.cluster.stand_in import REGIONS, Port, StandIn


async def frames(answer: aiohttp.ClientResponse, count: int) -> list[tuple[int | None, Any]]:
    """(id, data) of the next server-sent events."""
    found: list[tuple[int | None, Any]] = []
    number = None
    async for line in answer.content:
        name, _, value = line.decode().strip().partition(": ")
        if name == "id":
            number = int(value)
        elif name == "data":
            found.append((number, json.loads(value)))
            if len(found) == count:
                break
    return found


async def test_the_load_adds_up_to_the_requests_that_were_made(port: Port) -> None:
    made = port.cluster.serve(20, 3)
    load = await port.get("/api/agents/my-agent/load")
    assert load["total"] == made == sum(row["requests"] for row in load["instances"])
    assert sum(row["share"] for row in load["instances"]) == pytest.approx(100, abs=0.1)
    assert {row["region"] for row in load["instances"]} == set(REGIONS)
    rows = await port.get("/api/agents/my-agent/instances")
    assert sum(row["requests"] for row in rows) == made
    assert all(row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows)


async def test_what_is_live_is_what_the_other_answers_say(port: Port) -> None:
    port.cluster.serve(20, 3, errors=0.2)
    live = await port.get("/api/agents/my-agent/live?once=1")
    load = await port.get("/api/agents/my-agent/load")
    rows = await port.get("/api/agents/my-agent/instances")
    agent = await port.get("/api/agents/my-agent")
    assert live["total"] == load["total"]
    assert [(i["id"], i["share"]) for i in live["instances"]] == [(i["id"], i["share"]) for i in load["instances"]]
    assert [(i["requests"], i["p95_ms"]) for i in live["instances"]] == [(i["requests"], i["p95_ms"]) for i in rows]
    assert live["agent"]["regions"] == agent["regions"]
    assert live["agent"]["versions"][0]["weight"] == 100
    far = live["distances"]["us-east-1"]
    assert far["us-east-1"]["ms"] == 0
    assert far["eu-west-1"]["ms"] < far["ap-southeast-1"]["ms"]
    assert live["last_event"] == port.cluster.events.last


async def test_a_distance_says_where_it_is_known_from_and_what_gateways_measured_counts(port: Port) -> None:
    cluster, east, west, south = port.cluster, *REGIONS
    settings = replace(cluster.desired.settings, distances_ms={east: {south: 200.0}, south: {east: 200.0}})
    cluster.desired.settings = settings
    told = [("g1", {east: {west: 81.5, south: 7.0}}), ("g2", {west: {east: 80.0}})]
    for gateway, measured in told:
        cluster.totals.add(Observation(gateway, {}, distances_ms=measured), time.monotonic())
    far = (await port.get("/api/agents/my-agent/live?once=1"))["distances"]
    assert far[east][south] == far[south][east] == {"ms": 200.0, "source": "configured"}
    assert far[east][west] == far[west][east] == {"ms": 80.0, "source": "measured"}
    assert far[west][south]["source"] == "estimated" and far[west][south]["ms"] > 80


async def test_measurements_of_a_gateway_that_is_gone_are_forgotten(port: Port) -> None:
    totals = port.cluster.totals
    totals.add(Observation("g2", {}, distances_ms={"a": {"b": 5.0}}), time.monotonic())
    assert totals.measured() == {("a", "b"): 5.0}
    totals.forget_gateway("g2")
    assert totals.measured() == {}


async def test_a_regions_healthy_instances_are_counted_among_those_that_should_be_there(port: Port) -> None:
    """Of the stable version, both; a canary's are under `versions`, with its own."""
    port.cluster.start_instance("my-agent", "another", REGIONS[0], "v2")
    port.cluster.registry.judge("us-east-1-0", False, "ill", time.time())
    for _ in range(3):
        port.cluster.registry.judge("us-east-1-0", False, "ill", time.time())
    agent = await port.get("/api/agents/my-agent")
    there = agent["regions"][REGIONS[0]]
    assert (there["instances"], there["healthy"]) == (3, 2)
    assert {one["version"]: one["healthy"] for one in agent["versions"]} == {"v1": 6, "v2": 1}


async def test_live_is_a_stream_of_frames(port: Port) -> None:
    async with port.client.get("/api/agents/my-agent/live") as answer:
        assert answer.content_type == "text/event-stream"
        first, second = await frames(answer, 2)
    assert second[1]["at"] > first[1]["at"]


async def test_history_has_the_columns_that_are_asked_for_and_all_requests(port: Port) -> None:
    made = port.cluster.serve(30, 2, upto=int(time.time()) - 1)
    read = await port.get("/api/agents/my-agent/history?window=1m&columns=requests,p95_ms")
    assert (read["step_s"], len(read["times"]), len(read["instances"])) == (1, 60, 7)
    assert set(read["instances"][0]) == {"id", "version", "region", "requests", "p95_ms"}
    assert sum(value or 0 for row in read["instances"] for value in row["requests"]) == made
    assert [len(read["refused"][name]) for name in ("requests", "rate_limited", "queued")] == [60, 60, 60]
    assert set(read["weights"]) == {"v1"} and [value for value in read["weights"]["v1"] if value is not None] == [100] * 30
    day = await port.get("/api/agents/my-agent/history?window=24h&points=1440")
    assert (day["step_s"], len(day["times"])) == (60, 1440)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/agents/my-agent/history?window=soon", "window: 'soon' is not a duration"),
        ("/api/agents/my-agent/history?points=many", "points: 'many' is not a whole number"),
        ("/api/agents/my-agent/history?columns=p42", "columns: 'p42' is not a column (allowed: requests, "),
        ("/api/events?kind=gossip", "kind: 'gossip' is not an event kind (allowed: instance, "),
        ("/api/events?limit=-1", "limit: '-1' is not a whole number"),
    ],
)
async def test_a_question_that_cannot_be_answered_is_told_why(port: Port, path: str, says: str) -> None:
    assert says in (await port.get(path, 400))["error"]["message"]


@pytest.mark.parametrize("view", ["", "/instances", "/load", "/history", "/live"])
async def test_an_agent_that_is_none_is_404(port: Port, view: str) -> None:
    assert (await port.get(f"/api/agents/nobody{view}", 404))["error"]["type"] == "unknown_agent"


async def test_events_are_listed_and_chosen_from(port: Port) -> None:
    all_of_them = await port.get("/api/events")
    assert all_of_them[-1]["message"] == "instance-7 started in ap-southeast-1"
    assert [event["id"] for event in all_of_them] == sorted(event["id"] for event in all_of_them)
    assert {event["kind"] for event in await port.get("/api/events?kind=gateway")} == {"gateway"}
    assert len(await port.get("/api/events?agent=my-agent&limit=3")) == 3
    assert await port.get(f"/api/events?after={all_of_them[-1]['id']}") == []


async def test_who_follows_events_gets_the_next_one_and_resumes_behind_the_last(port: Port) -> None:
    async with port.client.get("/api/events?follow=1&limit=1") as answer:
        ((last, _),) = await frames(answer, 1)
        port.cluster.events.add("scale", "one more", agent="my-agent")
        ((_, event),) = await frames(answer, 1)
        assert event["message"] == "one more"
    port.cluster.events.add("scale", "and another")
    async with port.client.get("/api/events?follow=1", headers={"Last-Event-ID": str(last)}) as answer:
        resumed = await frames(answer, 2)
    assert [event["message"] for _, event in resumed] == ["one more", "and another"]


async def test_the_page_and_what_it_needs_are_served_and_nothing_else_is_loaded(port: Port) -> None:
    async with port.client.get("/dashboard?agent=my-agent&view=load") as answer:
        assert (answer.status, str(answer.url.relative())) == (200, "/dashboard/?agent=my-agent&view=load")
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        page = await answer.text()
    assert "http" not in page.replace("<meta http-equiv", "")
    for name in ("app.js", "views.js", "charts.js", "format.js", "style.css", "icon.svg", "vendor/uPlot.iife.min.js"):
        async with port.client.get(f"/dashboard/{name}") as answer:
            assert answer.status == 200
    async with port.client.get("/dashboard/../admin.py") as answer:
        assert answer.status == 404


async def test_two_hundred_instances_are_answered_in_little_time(tmp_path: Path) -> None:
    """Each bound is many times what it takes here; the figure itself is in the README."""
    cluster = StandIn(tmp_path, {"big": {"regions": {region: {"instances": 70} for region in REGIONS}}})
    for number in range(200):
        cluster.start_instance("big", f"r{number}", REGIONS[number % 3])
    cluster.serve(65, 5)
    listener = Listener(AdminApp(cluster.view).app(), bind("127.0.0.1", 0), grace_s=0)
    await listener.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}") as client:
            for path in ("load", "instances", "live?once=1", "history?window=15m"):
                began = time.process_time()
                async with client.get(f"/api/agents/big/{path}") as answer:
                    assert len((await answer.json())["instances"] if path != "instances" else await answer.json()) == 200
                took = time.process_time() - began
                assert took < 1.0
    finally:
        await listener.close()


async def test_an_instance_in_a_crash_loop_is_listed_with_its_crashes_and_its_next_start(port: Port) -> None:
    cluster = port.cluster
    app, region = "my-agent.v1.eu-west-1", "eu-west-1"
    for number in range(3):
        replica = f"crashing-{number}"
        now = time.monotonic() - 20 + 10 * number
        cluster.crash_loops.request_start(StartRequest(app, "my-agent", "v1", region, replica), now)
        cluster.crash_loops.failed(replica, "on_start raised OSError: no licence", now)
    rows = await port.get("/api/agents/my-agent/instances")
    row = next(row for row in rows if row["state"] == "crash-loop")
    assert set(row) == set(rows[0]), "one shape for all rows"
    assert (row["id"], row["crashes"], row["connections"], row["uptime_s"]) == ("instance-8", 3, 0, None)
    assert 8 < row["starts_in_s"] <= 10
    assert row["health"]["reason"].startswith("crashed 3 times in a row soon after its start (on_start raised OSError")
    live = await port.get("/api/agents/my-agent/live?once=1")
    assert [one["state"] for one in live["instances"]].count("crash-loop") == 1 and len(live["instances"]) == 8
    (loop,) = (await port.get("/api/status"))["crash_loops"]
    assert (loop["id"], loop["crashes"], loop["region"], loop["reason"]) == (
        "instance-8", 3, region, "on_start raised OSError: no licence",
    )  # fmt: skip
    text = exposition(cluster.view).decode()
    labels = 'agent="my-agent",instance="instance-8",region="eu-west-1",version="v1"'
    assert f"swiftclaw_instance_crashes{{{labels}}} 3.0" in text
    assert 'swiftclaw_instances{agent="my-agent",region="eu-west-1",state="crash-loop",version="v1"} 1.0' in text
    console = Console(width=80, file=StringIO())
    console.print(tables.instances(rows))
    assert "instance-8 eu-west-1      v1      crash-loop" in console.file.getvalue()  # type: ignore[attr-defined]


async def test_while_down_drains_every_page_shows_what_still_runs(port: Port) -> None:
    """Nothing is desired any more, but instances, a gateway and requests are there until they have finished."""
    port.cluster.serve(5, 3)
    port.cluster.desired.forget_all()
    status = await port.get("/api/status")
    assert [agent["name"] for agent in status["agents"]] == ["my-agent"]
    assert len(await port.get("/api/agents/my-agent/instances")) > 0
    for path in ("/api/agents", "/api/agents/my-agent", "/api/agents/my-agent/load", "/api/agents/my-agent/live?once=1",
                 "/api/agents/my-agent/history", "/api/events", "/metrics"):  # fmt: skip
        async with port.client.get(path) as answer:
            assert answer.status == 200, path
