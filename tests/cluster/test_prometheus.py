"""Debian's Prometheus scrapes a Controller's port and evaluates every expression of the alert rules and the Grafana file."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from cluster.exposition import exposition
from tests.cluster.conftest import Port, StandIn

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yaml"
GRAFANA = ROOT / "deploy/grafana/swiftclaw.json"
BUILT_IN = {"up"}
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian's package prometheus is not there")


def rules() -> list[str]:
    return [rule["expr"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[str]:
    found = [target["expr"] for panel in json.loads(GRAFANA.read_text("utf-8"))["panels"] for target in panel["targets"]]
    return [expression.replace("$agent", ".+") for expression in found]


def series(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:swiftclaw_\w+|up)\b(?=[\[{\s)]|$)", expression))


async def test_every_series_that_is_asked_for_is_one_that_is_exposed(tmp_path: Path) -> None:
    controller = StandIn(tmp_path, {"my-agent": {"regions": {"us-east-1": {"instances": 1}}}})
    controller.start_instance("my-agent", "r", "us-east-1")
    controller.serve(1, 1)
    exposed = set(re.findall(r"^(swiftclaw_\w+)", exposition(controller.ledger, controller).decode(), re.MULTILINE)) | BUILT_IN
    asked = set().union(*map(series, [*rules(), *panels()]))
    assert len(asked) > 10 and asked <= exposed


@pytest.mark.skipif(not shutil.which("promtool"), reason="Debian's package prometheus is not there")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def ask(client: aiohttp.ClientSession, expression: str) -> list[Any]:
    async with client.post("/api/v1/query", data={"query": expression}) as answer:
        said = await answer.json()
    assert said["status"] == "success", (expression, said)
    found: list[Any] = said["data"]["result"]
    return found


@needs_prometheus
async def test_every_expression_returns_data_and_alerts_fire_when_they_should(port: Port, tmp_path: Path) -> None:
    controller = port.controller
    for second in range(15):  # some seconds of failures
        controller.serve_second(time.monotonic() - 15 + second, 2, errors=0.5)
    controller.registry.judge("us-east-1-0", False, "database", time.time())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listening = f"127.0.0.1:{probe.getsockname()[1]}"
    targets = [port.url.removeprefix("http://")]
    scrape = {"job_name": "swiftclaw", "honor_labels": True, "static_configs": [{"targets": targets}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={listening}", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession(f"http://{listening}") as client:
            deadline = time.monotonic() + 60
            waiting = panels()
            while waiting and time.monotonic() < deadline:
                await asyncio.sleep(0.5)
                controller.serve_second(time.monotonic(), 2, errors=0.5)
                try:
                    waiting = [expression for expression in waiting if not await ask(client, expression)]
                except (aiohttp.ClientError, json.JSONDecodeError):
                    continue  # it is starting
            assert waiting == []
            for expression in rules():
                await ask(client, expression)
            down, _, failing, *_ = rules()
            assert [one["metric"]["instance"] for one in await ask(client, down)] == ["instance-1"]
            assert [one["metric"]["agent"] for one in await ask(client, failing)] == ["my-agent"]
    finally:
        process.terminate()
        await process.wait()
