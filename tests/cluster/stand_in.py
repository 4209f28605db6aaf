"""A cluster without Ray or a Controller: the real parts behind a `ClusterView`, and seeded load to fill them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from cluster.admin.sampler import samples
from cluster.desired.apps import AppStatus
from cluster.desired.autoscaling import Autoscaling
from cluster.desired.canary_analysis import CanaryAnalysis
from cluster.desired.desired import DesiredState
from cluster.desired.packages import Packages
from cluster.desired.state import State, Store
from cluster.fleet.crash_loops import CrashLoops
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.gateways import Gateways
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.fleet.shared_breakers import SharedBreakers
from cluster.messages import GatewayHello, Observation, Registration
from cluster.telemetry.events import Events
from cluster.telemetry.history import MetricHistory
from cluster.telemetry.tally import Tally
from cluster.telemetry.totals import MetricTotals
from cluster.view import ClusterView

REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-1")


@dataclass
class NothingPlaced:
    """A reconciler that has run no round."""

    observed: dict[str, AppStatus] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class StandIn:
    """One gateway and the instances that a test starts. `serve` some seconds of load, then read `view`."""

    def __init__(self, folder: Path, agents: dict[str, dict[str, Any]]) -> None:
        state, self.events, self.totals = State(), Events(), MetricTotals()
        self.desired = DesiredState(state, Store(folder), Packages(folder / "packages"), self.events, lambda point: None)
        named = {name: {"agent": "m:agent", **block} for name, block in agents.items()}
        gateways = [{"region": "us-east-1", "replicas": 1}]
        self.desired.start_with({"agents": named, "gateways": gateways, "stateDir": str(folder)}, str(folder))
        self.registry = Registry(self._changed)
        self.recorder = EventRecorder(self.events, self.registry)
        self.crash_loops = CrashLoops(self.registry, on_crash=self.recorder.crash_loop)
        self.gateways = Gateways(self.recorder, self.totals, self._changed)
        self.rollouts = self.desired.versions
        self.view = ClusterView(
            self.desired, self.registry, self.gateways, SharedBreakers(), self.rollouts,
            CanaryAnalysis(self.totals, lambda agent, version: False), Autoscaling(self.registry, state.counts),
            NothingPlaced(), self.totals, MetricHistory(), self.events, self.crash_loops,
        )  # fmt: skip
        self.rng = Random(1)
        self.gateways.observe(GatewayHello("g1", "gateway.us-east-1", self.view.settings.gateways[0], "node", 4000), None)

    def _changed(self) -> None:
        self.crash_loops.sync(time.monotonic())
        self.recorder.instances(self.registry)
        self.recorder.levels(self.desired.settings, self.registry)

    def start_instance(self, agent: str, replica: str, region: str, version: str = "v1") -> InstanceRecord:
        started = time.time() - 100
        self.registry.admit(
            Registration(agent, version, region, f"{agent}.{version}.{region}", replica, "127.0.0.1", 1, 4242, "node", started)
        )
        self.registry.observe(replica)
        self.registry.judge(replica, True, "", time.time())
        record = self.registry.get(replica)
        assert record is not None
        return record

    def serve(self, seconds: int, per_second: float, *, errors: float = 0.0, upto: float | None = None) -> int:
        """That many seconds of requests, ending now, on every healthy instance. Returns the number of requests."""
        count, end, monotonic = 0, upto or time.time(), time.monotonic()
        for second in range(seconds):
            ago = seconds - 1 - second
            count += self.serve_second(monotonic - ago, per_second, errors)
            self.sample(end - ago)
        return count

    def sample(self, now: float) -> None:
        """Record what the sampler would at `now` (seconds since the epoch)."""
        self.view.history.add(now, samples(self.view))

    def serve_second(self, now: float, per_second: float, errors: float = 0.0) -> int:
        healthy = [record for record in self.registry if record.state == "healthy"]
        counts, count = {}, 0
        for number, record in enumerate(healthy):
            tally = Tally()
            for _ in range(round(per_second)):
                duration_s = self.rng.lognormvariate(-3.5 + (number % 5) / 8, 0.5)
                tally.routed(0.0001)
                tally.add(502 if self.rng.random() < errors else 200, duration_s, duration_s / 2)
                count += 1
            record.in_flight = tally.active = self.rng.randint(0, 5)
            record.cpu_percent = float(self.rng.randint(5, 60))
            counts[record.key] = tally.take()
        self.totals.add(Observation("g1", counts), now)
        return count


@dataclass
class Port:
    """The admin port of a stand-in, and an HTTP client of it."""

    cluster: StandIn
    url: str
    client: aiohttp.ClientSession

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.client.get(path) as response:
            assert response.status == status, await response.text()
            return await response.json()


def seven(folder: Path) -> StandIn:
    """The agent of cluster.yaml: 7 instances in 3 regions."""
    regions = {region: {"instances": count, "priority": 1} for region, count in zip(REGIONS, (3, 2, 2), strict=True)}
    cluster = StandIn(folder, {"my-agent": {"regions": regions}})
    for region, block in regions.items():
        for number in range(block["instances"]):
            cluster.start_instance("my-agent", f"{region}-{number}", region)
    return cluster
