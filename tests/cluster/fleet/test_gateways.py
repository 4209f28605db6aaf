"""Gateways that start, poll for snapshots and fall silent."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from cluster.config import GatewaySettings
from cluster.fleet import gateways
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.gateways import BROKEN_S, GATEWAY_GONE_S, Gateways
from cluster.messages import GatewayHello, Observation, Peer
from cluster.telemetry.events import Events
from cluster.telemetry.totals import MetricTotals

ONE = GatewayHello("g1", "gateway.us", GatewaySettings("us"), "node", 1, "10.0.0.1", 7001)
TWO = replace(ONE, gateway="g2", pid=2, port=7002)


class World:
    def __init__(self) -> None:
        self.events, self.ledger, self.changes, self.known = Events(), MetricTotals(), 0, True
        self.gateways = Gateways(EventRecorder(self.events, []), self.ledger, self._changed)

    def _changed(self) -> None:
        self.changes += 1
        self.gateways.count_change()

    def knows(self) -> bool:
        return self.known

    async def change(self) -> None:
        self._changed()
        self.gateways.announce()

    def ask(self, seen: str | None) -> asyncio.Task[bool]:
        return asyncio.create_task(self.gateways.wait_for_change(seen, self.knows))

    def messages(self) -> list[str]:
        return [event.message for event in self.events.find()]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_gateway_with_another_version_is_answered_at_once(world: World) -> None:
    assert await asyncio.wait_for(world.ask(None), 5)
    assert await asyncio.wait_for(world.ask("another.7"), 5)


async def test_a_gateway_with_the_newest_version_is_answered_when_it_changes(world: World) -> None:
    waiting = world.ask(world.gateways.version)
    await asyncio.sleep(0)
    assert not waiting.done()
    await world.change()
    assert await asyncio.wait_for(waiting, 5)


async def test_requests_that_break_off_at_any_moment_hold_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when that coincides with the end of a wait, or with a change."""
    monkeypatch.setattr(gateways, "RECHECK_S", 0.01)
    rng = Random(1)
    for _ in range(60):
        world.known = False
        waiting = [world.ask(world.gateways.version) for _ in range(5)]
        await asyncio.sleep(rng.random() * 0.012)
        changing = asyncio.create_task(world.change())
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        world.known = True
        waited = world.ask(world.gateways.version)
        await asyncio.sleep(0)
        await asyncio.wait_for(world.change(), 5)
        assert await asyncio.wait_for(waited, 5)
        await asyncio.gather(*waiting, changing, return_exceptions=True)


async def test_without_a_change_the_poll_ends_without_a_snapshot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "POLL_S", 0.05)
    assert not await asyncio.wait_for(world.ask(world.gateways.version), 5)


async def test_no_snapshot_is_sent_before_the_controller_has_recovered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "RECHECK_S", 0.01)
    world.known = False
    waiting = world.ask(None)
    await world.change()
    await asyncio.sleep(0)
    assert not waiting.done()
    world.known = True
    assert await asyncio.wait_for(waiting, 5), "it checks again without an announcement"


def test_a_new_gateway_is_one_event_and_a_peer_of_the_others(world: World) -> None:
    for hello in (ONE, TWO, ONE):
        world.gateways.observe(hello, None)
    assert len(world.messages()) == world.changes == 2
    assert world.gateways.peers() == (Peer("g1", "10.0.0.1", 7001), Peer("g2", "10.0.0.1", 7002))


def test_a_gateway_is_current_while_it_has_the_newest_version(world: World) -> None:
    world.gateways.observe(ONE, None)
    assert not world.gateways.is_current("g1")
    world.gateways.observe(ONE, world.gateways.version)
    assert world.gateways.is_current("g1")
    world.gateways.count_change()
    assert not world.gateways.is_current("g1")


def test_a_gateway_that_reports_is_present_though_it_does_not_poll(world: World) -> None:
    world.gateways.observe(ONE, None)
    world.gateways.present["g1"] = (ONE, time.monotonic() - GATEWAY_GONE_S - 1, "7.1")
    world.gateways.acknowledge("g1")
    world.gateways.acknowledge("unknown")
    world.gateways.forget_silent()
    assert {name: seen for name, (_, _, seen) in world.gateways.present.items()} == {"g1": "7.1"}


def test_a_silent_gateway_is_removed_with_its_current_values(world: World) -> None:
    world.gateways.observe(ONE, None)
    world.gateways.observe(TWO, None)
    world.ledger.add(Observation("g1", {}, queued={"a": 3}), time.monotonic())
    world.gateways.present["g1"] = (ONE, time.monotonic() - GATEWAY_GONE_S - 1, None)
    world.gateways.forget_silent()
    assert list(world.gateways.present) == ["g2"] and world.ledger.queued("a") == 0
    assert (
        world.messages()[-1].endswith("is no longer available: it neither asks for snapshots nor reports")
        and world.changes == 3
    )


def test_a_gateway_whose_connection_broke_is_removed_soon_unless_it_calls_again(world: World) -> None:
    now = [100.0]
    world.gateways._clock = lambda: now[0]
    world.gateways.observe(ONE, None)
    world.gateways.observe(TWO, None)
    for gateway in ("g1", "g2", "unknown"):
        world.gateways.suspect(gateway)
    now[0] += BROKEN_S - 0.1
    world.gateways.forget_silent()
    assert list(world.gateways.present) == ["g1", "g2"]
    world.gateways.acknowledge("g2")
    now[0] += 0.2
    world.gateways.forget_silent()
    assert list(world.gateways.present) == ["g2"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_desired_state_is_that_of_the_newest_snapshot(world: World, order: tuple[int, int]) -> None:
    old: dict[str, Any] = {"args": "old"}
    new: dict[str, Any] = {"args": "new"}
    assert world.gateways.newest_desired() is None
    hellos = [(replace(ONE, desired=old), "abc.9"), (replace(TWO, desired=new), "abc.10")]
    for number in order:
        world.gateways.observe(*hellos[number])
    assert world.gateways.newest_desired() == new
