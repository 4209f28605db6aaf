"""Which instances' processes run: against instances that are played on real sockets, and a Controller that pauses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from random import Random

import pytest
from aiohttp import web

from cluster.config import GatewaySettings
from cluster.config.agent_settings import HealthCheck
from cluster.fleet import gateways, liveness
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.gateways import Gateways
from cluster.fleet.health_checks import HealthChecker
from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.liveness import LivenessWatch
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import CHECK_PATH, WATCH_PATH, GatewayHello, Registration
from cluster.telemetry.events import Events
from cluster.telemetry.totals import MetricTotals
from cluster.transport.running_clock import running_time

SILENCE_S, GONE_S = 0.6, 1.2
PATIENCE_S = 10.0


class Played:
    """An instance that reports ten times a second until it is frozen, and what the Controller makes of it."""

    def __init__(self) -> None:
        self.frozen = False
        self.streams = 0  # opened so far
        self.states: list[str] = []  # every state that the gateways could have learned

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get(WATCH_PATH, self._report)
        app.router.add_get(CHECK_PATH, self._check)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        self.registry, self.client = Registry(self._changed), InstanceClient("the-key")
        self.record: InstanceRecord = self.registry.admit(
            Registration("a", "v1", "eu", "a.v1.eu", "x", "127.0.0.1", port, pid=1, node="n", started_at=0.0)
        )
        self.registry.judge("x", True, "", 0.0)
        self.watch = LivenessWatch(self.registry, self.client)
        self.watch.attend(self.record)
        await self.until(lambda: self.record.state == "healthy")

    async def stop(self) -> None:
        await self.watch.close()
        await self.client.close()
        await self._runner.cleanup()

    def _changed(self) -> None:
        self.states += [record.state for record in self.registry]

    async def _report(self, request: web.Request) -> web.StreamResponse:
        self.streams += 1
        while self.frozen:
            await asyncio.sleep(0.01)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            if not self.frozen:
                line = {"replica": "x", "cpu": 1, "draining": False, "stopped": False}
                await response.write(json.dumps(line).encode() + b"\n")
            await asyncio.sleep(0.1)

    async def _check(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.json_response({"healthy": True, "reason": ""})

    async def until(self, condition) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends, repr(self.record)
            await asyncio.sleep(0.01)


@pytest.fixture
async def played(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Played]:
    monkeypatch.setattr(liveness, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(liveness, "GONE_S", GONE_S)
    instance = Played()
    await instance.start()
    yield instance
    await instance.stop()


async def test_a_frozen_instance_is_ejected_and_returns_with_its_next_line(played: Played) -> None:
    played.frozen = True
    await played.until(lambda: played.record.state == "ejected")
    assert played.record.reason == f"no response for {SILENCE_S:g} s"
    played.frozen = False
    await played.until(lambda: played.record.state == "healthy")


async def test_one_that_stays_frozen_is_removed(played: Played) -> None:
    played.frozen = True
    await played.until(lambda: played.registry.get("x") is None)


@pytest.mark.parametrize("seconds", [0.9, 1.6])
async def test_no_instance_is_ejected_or_removed_because_the_controller_was_paused(played: Played, seconds: float) -> None:
    await asyncio.sleep(0.3)
    time.sleep(seconds)  # noqa: ASYNC251
    await asyncio.sleep(SILENCE_S + 0.5)
    assert played.states == [*played.states[:1], "healthy"] and played.streams == 1, "and its stream is still the same"


async def test_an_instance_that_is_frozen_is_ejected_after_the_pause_as_well(played: Played) -> None:
    played.frozen = True
    time.sleep(1.6)  # noqa: ASYNC251
    await played.until(lambda: played.record.state == "ejected")


async def test_no_health_check_fails_because_the_controller_was_paused(played: Played) -> None:
    settings = HealthCheck(interval_s=0.05, timeout_s=0.5, unhealthy_threshold=1, healthy_threshold=1)
    checks = HealthChecker(played.registry, played.client, lambda _: settings, Random(1))
    checks.attend(played.record)
    try:
        for _ in range(3):
            await asyncio.sleep(0.25)
            time.sleep(0.8)  # noqa: ASYNC251
        await asyncio.sleep(0.5)
        assert "unhealthy" not in played.states and played.record.state == "healthy"
    finally:
        await checks.close()


async def test_no_gateway_is_removed_because_the_controller_was_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "GATEWAY_GONE_S", 0.6)
    present = Gateways(EventRecorder(Events(), []), MetricTotals(), lambda: None, running_time)
    present.observe(GatewayHello("g1", "gateway.us", GatewaySettings("us"), "node", 1), None)
    await asyncio.sleep(0.2)
    time.sleep(1.0)  # noqa: ASYNC251
    present.forget_silent()
    await asyncio.sleep(0.1)
    present.forget_silent()
    assert list(present.present) == ["g1"]
    await asyncio.sleep(1.0)
    present.forget_silent()
    assert not present.present
