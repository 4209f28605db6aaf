"""The number of instances follows the load on a real cluster, and nobody who asks notices."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Container, Iterator
from typing import Any

import pytest

from tests.integration.conftest import Cluster, get, until
from tests.integration.load import Load

pytestmark = pytest.mark.cluster

REGION = "us-east-1"
BIG = round(0.6 * (os.cpu_count() or 1), 2)  # there is room for one of them on a node
HALF_A_SECOND = """
import asyncio
from swiftclaw import Agent

agent = Agent("half")


@agent.on_message
async def handle(message):
    await asyncio.sleep(0.5)
    return "ok"
"""
BURNER = """
import time
from swiftclaw import Agent

agent = Agent("burner")


@agent.on_message
def handle(message):
    ends = time.thread_time() + 0.05
    while time.thread_time() < ends:
        pass
    return "ok"
"""


def agents(**fixed: Any) -> dict[str, Any]:
    one, small = {REGION: {"instances": 1}}, {"cpus": 0.01}
    return {
        "my-agent": {
            "agent": "half:agent",
            "regions": {REGION: {}},
            "resources": small,
            "loadBalancing": {"strategy": "least-connections"},
            "scaling": {"minInstances": 3, "maxInstances": 8, "targetConnections": 5, "downscaleDelay": "5s"},
        },
        "burner": {
            "agent": "burner:agent",
            "regions": one,
            "resources": small,
            "scaling": {"minInstances": 1, "maxInstances": 3, "targetCPU": 50, "downscaleDelay": "5s"},
        },
        "fixed": {"agent": "half:agent", "regions": one, "resources": small, **fixed},
        "big": {"agent": "half:agent", "regions": one, "resources": {"cpus": BIG}},
    }


@pytest.fixture(scope="module")
def scaled(shared: Cluster) -> Iterator[Cluster]:
    (shared.folder / "half.py").write_text(HALF_A_SECOND)
    (shared.folder / "burner.py").write_text(BURNER)
    shared.write(agents())
    shared.up()
    yield shared


def region(cluster: Cluster, agent: str) -> dict[str, Any]:
    found: dict[str, Any] = get(f"{cluster.admin}/api/agents/{agent}")["regions"][REGION]
    return found


def scale_events(cluster: Cluster, agent: str) -> list[str]:
    return [one["message"] for one in get(f"{cluster.admin}/api/events") if one["kind"] == "scale" and one["agent"] == agent]


class Seen:
    """What the admin port says, every half second while requests run: seconds, desired, healthy."""

    def __init__(self, cluster: Cluster, agent: str) -> None:
        self._cluster, self._agent = cluster, agent
        self.rows: list[tuple[float, int, int]] = []

    async def until(self, wanted: Container[int], seconds: float) -> float:
        """How long it took until that many were desired and healthy."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            there = await asyncio.to_thread(region, self._cluster, self._agent)
            self.rows.append((round(time.monotonic() - began, 1), there["desired"], there["healthy"]))
            if there["healthy"] == there["desired"] and there["healthy"] in wanted:
                return time.monotonic() - began
            await asyncio.sleep(0.5)
        raise AssertionError(f"not {wanted} within {seconds:g} s: {self.rows}")


async def load_until(load: Load, seen: Seen, wanted: Container[int], seconds: float) -> float:
    """Requests run, without a gap, until there are that many instances, and somewhat longer."""
    took_s = []

    async def watch() -> None:
        took_s.append(await seen.until(wanted, seconds))

    await load.run(2, watch, at=0)
    await load.run(2)
    return took_s[0]


async def test_a_step_of_more_than_four_times_the_load_is_met_and_taken_back_without_a_lost_request(scaled: Cluster) -> None:
    """15 in flight need three instances, 65 more than the eight that there may be."""
    seen = Seen(scaled, "my-agent")
    low, high, after = (Load(scaled.url, rate=rate) for rate in (30.0, 130.0, 30.0))
    await low.run(5)
    assert region(scaled, "my-agent")["desired"] == 3
    up_s = await load_until(high, seen, [8], 60)
    down_s = await load_until(after, seen, range(3, 5), 120)
    print(f"eight instances after {up_s:.1f} s, less than five after {down_s:.1f} s; (s, desired, healthy): {seen.rows}")
    for load in (low, high, after):
        assert load.accounted().ok == len(load.sent), load.accounted()
    said = scale_events(scaled, "my-agent")
    assert "requests in flight" in said[0] and "3 -> " in said[0]
    assert region(scaled, "my-agent")["reason"] in said[-1]


async def test_an_agent_that_is_bound_by_its_cpu_gets_more_instances(scaled: Cluster) -> None:
    """20 requests a second of 50 ms of CPU each: all of a core, where half of one is wanted."""
    seen = Seen(scaled, "burner")
    load = Load(scaled.url, rate=20.0, agent="burner")
    watching = asyncio.create_task(seen.until([2], 90))
    while not watching.done() and not (seen.rows and seen.rows[-1][2] == 3):
        await load.run(2)
    watching.cancel()
    assert seen.rows[-1][2] >= 2, seen.rows
    assert load.accounted().ok == len(load.sent), load.accounted()
    assert "CPU percent" in scale_events(scaled, "burner")[0]
    await Seen(scaled, "burner").until([1], 120)


def test_an_operators_count_survives_the_controller_and_the_next_up(scaled: Cluster) -> None:
    done = scaled.run("scale", "fixed", "--region", REGION, "--instances", "2")
    assert (done.returncode, done.stdout.strip()) == (0, f"fixed in {REGION}: 1 -> 2 instances (set by an operator)")
    until(lambda: len(scaled.healthy("fixed")) == 2, "two of them", 60)
    before, pid = scaled.healthy("fixed"), scaled.controller_pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: scaled.controller_pid() != pid, "another Controller", 60)
    until(lambda: scaled.healthy("fixed") == before, "the same two", 60)
    assert region(scaled, "fixed")["desired"] == 2
    scaled.up()
    assert scaled.healthy("fixed") == before
    scaled.write(agents(regions={REGION: {"instances": 3}}))
    scaled.up()
    assert len(scaled.healthy("fixed")) == 3
    scaled.write(agents())
    scaled.up()
    until(lambda: len(scaled.instances("fixed")) == 1, "one again", 60)


def test_a_count_beyond_the_bounds_is_refused(scaled: Cluster) -> None:
    until(lambda: region(scaled, "my-agent")["desired"] == 3, "what was before is over", 90)
    done = scaled.run("scale", "my-agent", "--instances", "9")
    assert done.returncode == 1
    assert f"9 instances of my-agent in {REGION} are out of bounds: minInstances and maxInstances allow 3 to 8" in done.stderr
    assert region(scaled, "my-agent")["desired"] == 3


def test_instances_that_have_no_place_stay_wanted_and_what_is_missing_where_is_said(scaled: Cluster) -> None:
    done = scaled.run("scale", "big", "--instances", "3")
    assert done.returncode == 0, done.stderr
    said = f"region {REGION}: 2 of 3 instances of big are waiting for {BIG:g} CPU each: the region's only node has "
    try:
        began = time.monotonic()
        warning = until(lambda: [one for one in get(f"{scaled.admin}/api/status")["warnings"] if said in one], "a warning", 90)[
            0
        ]
        print(f"after {time.monotonic() - began:.1f} s: {warning}")
        assert f"warning: {said}" in " ".join(scaled.run("status").stdout.split())
        assert (region(scaled, "big")["desired"], region(scaled, "big")["actual"]) == (3, 1)
    finally:
        scaled.run("scale", "big", "--instances", "1")
    until(lambda: not [one for one in get(f"{scaled.admin}/api/status")["warnings"] if said in one], "no warning", 60)
    assert len(scaled.healthy("big")) == 1


def test_an_app_whose_instances_have_no_place_is_gone_at_once_when_it_is_taken_out(scaled: Cluster) -> None:
    """They never ran, so nobody waits for them to drain (drainTimeout is 10 minutes)."""
    scaled.run("scale", "big", "--instances", "3")
    until(lambda: region(scaled, "big")["desired"] == 3, "three are wanted", 30)
    without = agents()
    del without["big"]
    scaled.write(without)
    scaled.run("up", timeout=120)
    until(lambda: not [app for app in get(f"{scaled.admin}/api/status")["apps"] if app.startswith("big.")], "it is gone", 60)
    scaled.write(agents())
    scaled.up()
    assert len(scaled.healthy("big")) == 1
