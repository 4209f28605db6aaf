"""Debian's Prometheus, run by a test: a server that evaluates the expressions of the alert rules and the Grafana file."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/alerts.yaml"
GRAFANA = ROOT / "deploy/grafana/swiftclaw.json"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")


def rules() -> dict[str, str]:
    """Alert -> expression."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> list[str]:
    found = [target["expr"] for panel in json.loads(GRAFANA.read_text("utf-8"))["panels"] for target in panel["targets"]]
    return [expression.replace("$agent", ".+") for expression in found]


def series(expression: str) -> set[str]:
    """The names that an expression asks for."""
    return set(re.findall(r"\b(?:swiftclaw_\w+|up)\b(?=[\[{\s)]|$)", expression))


class Prometheus:
    """Its HTTP API."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client

    async def get(self, path: str, **parameters: str) -> Any:
        async with self._client.post(path, data=parameters) as answer:
            said = await answer.json()
        assert said["status"] == "success", (path, parameters, said)
        return said["data"]

    async def query(self, expression: str) -> list[Any]:
        found: list[Any] = (await self.get("/api/v1/query", query=expression))["result"]
        return found

    async def names(self) -> set[str]:
        """Every series that it has."""
        async with self._client.get("/api/v1/label/__name__/values") as answer:
            return set((await answer.json())["data"])

    async def rules(self) -> dict[str, dict[str, Any]]:
        """Alert -> what became of its evaluation."""
        async with self._client.get("/api/v1/rules") as answer:
            groups = (await answer.json())["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    async def until_data(self, expressions: Iterable[str], seconds: float = 60) -> None:
        """Each of them has returned data, at one time or another."""
        deadline, waiting = time.monotonic() + seconds, list(expressions)
        while waiting and time.monotonic() < deadline:
            waiting = [expression for expression in waiting if not await self.query(expression)]
            await asyncio.sleep(0.3)
        assert waiting == [], f"no data within {seconds:g} s"


@asynccontextmanager
async def prometheus(folder: Path, scrapes: list[dict[str, Any]], every: str = "1s") -> AsyncIterator[Prometheus]:
    """A new one with the alert rules, nothing stored; ready when this yields, ended afterwards."""
    assert PROMETHEUS, "there is no prometheus"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listening = f"127.0.0.1:{probe.getsockname()[1]}"
    timing = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": "1s"}
    config = {"global": timing, "rule_files": [str(RULES)], "scrape_configs": scrapes}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={listening}", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession(f"http://{listening}") as client:
            await _ready(client, process)
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(client: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.returncode is None, "prometheus ended before it was ready"
        try:
            async with client.get("/-/ready") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass  # it is starting
        await asyncio.sleep(0.1)
    raise AssertionError("prometheus is not ready within 60 s")
