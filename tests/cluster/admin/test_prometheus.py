"""The exposition: every series of the contract, scraped by Prometheus, which evaluates all alert rules and Grafana panels."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.admin.prometheus import exposition
from cluster.desired.rollout_transitions import CanaryState, Version
from cluster.messages import Observation
from cluster.telemetry.tally import Tally
from policies.breaker import BreakerUpdate
from tests.cluster.stand_in import Port, StandIn
from tests.prometheus import PROMETHEUS, PROMTOOL, RULES, panels, prometheus, rules, series

BUILT_IN = {"up"}


async def test_every_series_that_is_asked_for_is_one_that_is_exposed(tmp_path: Path) -> None:
    cluster = StandIn(tmp_path, {"my-agent": {"regions": {"us-east-1": {"instances": 1}}}})
    cluster.start_instance("my-agent", "r", "us-east-1")
    cluster.serve(1, 1)
    exposed = set(re.findall(r"^(swiftclaw_\w+)", exposition(cluster.view).decode(), re.MULTILINE)) | BUILT_IN
    asked = set().union(*map(series, [*rules().values(), *panels()]))
    assert len(asked) > 10 and asked <= exposed


def busy(folder: Path) -> StandIn:
    """Agent `a` with a canary, one healthy instance of three, and some of everything that is counted."""
    cluster = StandIn(folder, {"a": {"regions": {"us": {"instances": 3}}}})
    canary = CanaryState(Version("v2", {"agent": "m:agent"}), target=10, percent=10, changed_at=0.0, deadline_at=60.0)
    cluster.rollouts.rollouts["a"] = replace(cluster.rollouts.rollouts["a"], canary=canary)
    record = cluster.start_instance("a", "r1", "us")
    record.cpu_percent = 12.5
    cluster.view.breakers.observe("g1", {"r1": BreakerUpdate("half-open", 0.0)}, time.monotonic())
    tally = Tally()
    for code, seconds in ((200, 0.003), (200, 700.0)):
        tally.add(code, seconds, seconds / 2)
        tally.routed(0.00003)
    refusals = {("a", 503): 2, ("a", 429): 4}
    observation = Observation(
        "g1",
        {record.key: tally.take()},
        refusals,
        retries={"a": 5},
        queued={"a": 6},
        moved_sessions={("a", "died"): 7},
        tasks=8,
    )
    cluster.totals.add(observation, time.monotonic())
    return cluster


def values(cluster: StandIn) -> dict[tuple[str, str | None], float]:
    """By name and the label that distinguishes a name's series here."""
    labels = ("le", "code", "state", "cause")
    return {
        (
            sample.name,
            next((sample.labels[label] for label in labels if label in sample.labels), None),
        ): sample.value
        for family in text_string_to_metric_families(exposition(cluster.view).decode())
        for sample in family.samples
        if sample.labels.get("version", "v1") in ("v1", "")
    }


def test_the_exposition_is_prometheus_text_with_cumulative_buckets(tmp_path: Path) -> None:
    exposed = values(busy(tmp_path))
    assert exposed["swiftclaw_requests_total", "200"] == 2
    assert exposed["swiftclaw_requests_total", "503"] == 2
    assert exposed["swiftclaw_request_duration_seconds_bucket", "0.0025"] == 0
    assert exposed["swiftclaw_request_duration_seconds_bucket", "0.005"] == 1
    assert exposed["swiftclaw_request_duration_seconds_bucket", "600.0"] == 1
    assert exposed["swiftclaw_request_duration_seconds_bucket", "+Inf"] == 2
    assert exposed["swiftclaw_routing_seconds_bucket", "5e-05"] == exposed["swiftclaw_routing_seconds_count", None] == 2
    assert exposed["swiftclaw_instances", "healthy"] == 1
    assert exposed["swiftclaw_desired_instances", None] == 3
    assert exposed["swiftclaw_instance_cpu_percent", None] == 12.5
    assert exposed["swiftclaw_circuit_state", None] == 2
    assert exposed["swiftclaw_rate_limited_total", None] == 4
    assert exposed["swiftclaw_retries_total", None] == 5
    assert exposed["swiftclaw_sessions_moved_total", "died"] == 7
    assert exposed["swiftclaw_sessions_moved_total", "drained"] == 0, "a rate needs the first value too"
    assert exposed["swiftclaw_queued_requests", None] == 6
    assert exposed["swiftclaw_gateway_tasks", None] == 8
    assert exposed["swiftclaw_version_weight", None] == 90


def test_a_group_without_a_healthy_instance_is_exposed_as_zero(tmp_path: Path) -> None:
    cluster = busy(tmp_path)
    cluster.registry.remove("r1")
    assert values(cluster)["swiftclaw_instances", "healthy"] == 0


def test_every_metric_of_the_contract_is_exposed_with_help(tmp_path: Path) -> None:
    families = text_string_to_metric_families(exposition(busy(tmp_path).view).decode())
    assert {family.name for family in families if family.documentation} == {
        "swiftclaw_requests", "swiftclaw_request_duration_seconds", "swiftclaw_time_to_first_byte_seconds",
        "swiftclaw_active_connections", "swiftclaw_instance_up", "swiftclaw_circuit_state", "swiftclaw_rate_limited",
        "swiftclaw_retries", "swiftclaw_sessions_moved",
        "swiftclaw_queued_requests", "swiftclaw_routing_seconds", "swiftclaw_version_weight",
        "swiftclaw_instances", "swiftclaw_desired_instances", "swiftclaw_instance_cpu_percent",
        "swiftclaw_instance_crashes", "swiftclaw_gateway_tasks", "swiftclaw_controller_tasks",
    }  # fmt: skip


@pytest.mark.skipif(not PROMTOOL, reason="Debian's package prometheus is not there")
def test_promtool_accepts_the_exposition(tmp_path: Path) -> None:
    text = exposition(busy(tmp_path).view)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(not PROMTOOL, reason="Debian's package prometheus is not there")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not PROMETHEUS, reason="Debian's package prometheus is not there")
async def test_every_expression_returns_data_and_alerts_fire_when_they_should(port: Port, tmp_path: Path) -> None:
    cluster = port.cluster
    for second in range(15):  # some seconds of failures
        cluster.serve_second(time.monotonic() - 15 + second, 2, errors=0.5)
    cluster.registry.judge("us-east-1-0", False, "database", time.time())

    async def go_on() -> None:
        while True:
            cluster.serve_second(time.monotonic(), 2, errors=0.5)
            await asyncio.sleep(0.5)

    targets = [port.url.removeprefix("http://")]
    scrape = {"job_name": "swiftclaw", "honor_labels": True, "static_configs": [{"targets": targets}]}
    async with prometheus(tmp_path, [scrape]) as server:
        load = asyncio.create_task(go_on())
        try:
            await server.until_data(panels())
        finally:
            load.cancel()
        for expression in rules().values():
            await server.query(expression)
        down = await server.query(rules()["SwiftClawInstanceDown"])
        assert [one["metric"]["instance"] for one in down] == ["instance-1"]
        failing = await server.query(rules()["SwiftClawErrorRate"])
        assert [one["metric"]["agent"] for one in failing] == ["my-agent"]


async def test_the_tasks_of_gateways_are_those_that_they_reported_last(tmp_path: Path) -> None:
    cluster = busy(tmp_path)
    before = values(cluster)["swiftclaw_controller_tasks", None]
    task = asyncio.ensure_future(asyncio.sleep(60))
    assert values(cluster)["swiftclaw_controller_tasks", None] == before + 1
    task.cancel()
    cluster.totals.forget_gateway("g1")
    assert ("swiftclaw_gateway_tasks", None) not in values(cluster)
