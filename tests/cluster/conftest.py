"""A Controller's admin port without Ray: real registry, ledger, history and events, and a clock-driven load to fill them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import aiohttp
import pytest

from cluster.admin.app import AdminApp
from cluster.admin.sampler import samples
from cluster.controller import Controller
from cluster.desired.state import State
from cluster.fleet.registry import InstanceRecord
from cluster.messages import GatewayHello, Observation, Registration
from cluster.telemetry.tally import Tally
from cluster.transport.listener import Listener, bind

REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-1")


class StandIn(Controller):
    """A Controller that reconciles nothing and watches nobody. `serve` some seconds of load, then look."""

    def __init__(self, folder: Path, agents: dict[str, dict[str, Any]]) -> None:
        gateways = [{"region": "us-east-1", "replicas": 1}]
        named = {name: {"agent": "m:agent", **block} for name, block in agents.items()}
        super().__init__({"agents": named, "gateways": gateways, "stateDir": str(folder)}, str(folder), cast(Any, None))
        self.rng = Random(1)
        hello = GatewayHello("g1", "gateway.us-east-1", self.settings.gateways[0], "node", 4000)
        self.witness.gateway(hello)
        self.gateways["g1"] = (hello, 0.0, None)

    def _recover(self) -> State:
        return State()

    def start_instance(self, agent: str, replica: str, region: str, version: str = "v1") -> InstanceRecord:
        started = time.time() - 100
        self.registry.admit(
            Registration(agent, version, region, f"{agent}.{version}.{region}", replica, "127.0.0.1", 1, 4242, "node", started)
        )
        self.registry.hear(replica)
        self.registry.judge(replica, True, "", time.time())
        record = self.registry.get(replica)
        assert record is not None
        return record

    def serve(self, seconds: int, per_second: float, *, errors: float = 0.0, upto: float | None = None) -> int:
        """That many seconds of requests, ending now, on all that are healthy; how many requests that were."""
        count, end, monotonic = 0, upto or time.time(), time.monotonic()
        for second in range(seconds):
            then = seconds - 1 - second
            count += self.serve_second(monotonic - then, per_second, errors)
            self.history.add(end - then, samples(self))
        return count

    def serve_second(self, now: float, per_second: float, errors: float = 0.0) -> int:
        healthy: Iterable[InstanceRecord] = [record for record in self.registry if record.state == "healthy"]
        seen, count = {}, 0
        for number, record in enumerate(healthy):
            tally = Tally()
            for _ in range(round(per_second)):
                took = self.rng.lognormvariate(-3.5 + (number % 5) / 8, 0.5)
                tally.routed(0.0001)
                tally.add(502 if self.rng.random() < errors else 200, took, took / 2)
                count += 1
            record.in_flight = tally.active = self.rng.randint(0, 5)
            record.cpu_percent = float(self.rng.randint(5, 60))
            seen[record.key] = tally.take()
        self.ledger.add(Observation("g1", seen), now)
        return count


@dataclass
class Port:
    """The admin port of a stand-in, and a client of it."""

    controller: StandIn
    url: str
    client: aiohttp.ClientSession

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.client.get(path) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()


def seven(folder: Path) -> StandIn:
    """The agent of cluster.yaml: 7 instances in 3 regions."""
    regions = {region: {"instances": count, "priority": 1} for region, count in zip(REGIONS, (3, 2, 2), strict=True)}
    controller = StandIn(folder, {"my-agent": {"regions": regions}})
    for region, block in regions.items():
        for number in range(block["instances"]):
            controller.start_instance("my-agent", f"{region}-{number}", region)
    return controller


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with AsyncExitStack() as stack:
        controller = seven(tmp_path)
        listener = Listener(AdminApp(controller).app(), bind("127.0.0.1", 0), grace_s=0)
        await listener.start()
        stack.push_async_callback(listener.close)
        url = f"http://127.0.0.1:{listener.port}"
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield Port(controller, url, client)
