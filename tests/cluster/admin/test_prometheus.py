"""Debian's Prometheus scrapes a Controller's port and evaluates every expression of the alert rules and the Grafana file."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from pathlib import Path

import pytest

from cluster.admin.prometheus import exposition
from tests.cluster.conftest import Port, StandIn
from tests.prometheus import PROMETHEUS, PROMTOOL, RULES, panels, prometheus, rules, series

BUILT_IN = {"up"}


async def test_every_series_that_is_asked_for_is_one_that_is_exposed(tmp_path: Path) -> None:
    controller = StandIn(tmp_path, {"my-agent": {"regions": {"us-east-1": {"instances": 1}}}})
    controller.start_instance("my-agent", "r", "us-east-1")
    controller.serve(1, 1)
    exposed = set(re.findall(r"^(swiftclaw_\w+)", exposition(controller.ledger, controller).decode(), re.MULTILINE)) | BUILT_IN
    asked = set().union(*map(series, [*rules().values(), *panels()]))
    assert len(asked) > 10 and asked <= exposed


@pytest.mark.skipif(not PROMTOOL, reason="Debian's package prometheus is not there")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not PROMETHEUS, reason="Debian's package prometheus is not there")
async def test_every_expression_returns_data_and_alerts_fire_when_they_should(port: Port, tmp_path: Path) -> None:
    controller = port.controller
    for second in range(15):  # some seconds of failures
        controller.serve_second(time.monotonic() - 15 + second, 2, errors=0.5)
    controller.registry.judge("us-east-1-0", False, "database", time.time())

    async def go_on() -> None:
        while True:
            controller.serve_second(time.monotonic(), 2, errors=0.5)
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
