"""Gateways that come, ask for news and fall silent."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from cluster.config import GatewaySettings
from cluster.fleet import gateways
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.gateways import GATEWAY_GONE_S, Gateways
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
        await self.gateways.announce()

    def ask(self, seen: str | None) -> asyncio.Task[bool]:
        return asyncio.create_task(self.gateways.wait_for_change(seen, self.knows))

    def said(self) -> list[str]:
        return [event.message for event in self.events.find()]


@pytest.fixture
def world() -> World:
    return World()


async def test_who_has_seen_another_version_is_answered_at_once(world: World) -> None:
    assert await asyncio.wait_for(world.ask(None), 5)
    assert await asyncio.wait_for(world.ask("another.7"), 5)


async def test_who_has_seen_the_newest_is_answered_when_it_changes(world: World) -> None:
    waiting = world.ask(world.gateways.version)
    await asyncio.sleep(0)
    assert not waiting.done()
    await world.change()
    assert await asyncio.wait_for(waiting, 5)


async def test_without_a_change_the_answer_is_that_nothing_is_new(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "POLL_S", 0.05)
    assert not await asyncio.wait_for(world.ask(world.gateways.version), 5)


async def test_nobody_is_told_anything_before_it_is_known_to_be_right(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "RECHECK_S", 0.01)
    world.known = False
    waiting = world.ask(None)
    await world.change()
    await asyncio.sleep(0)
    assert not waiting.done()
    world.known = True
    assert await asyncio.wait_for(waiting, 5), "nobody announced that: it looks by itself"


def test_one_that_comes_is_told_of_once_and_the_others_hear_of_it(world: World) -> None:
    for hello in (ONE, TWO, ONE):
        world.gateways.observe(hello, None)
    assert len(world.said()) == world.changes == 2
    assert world.gateways.peers() == (Peer("g1", "10.0.0.1", 7001), Peer("g2", "10.0.0.1", 7002))


def test_current_is_who_has_seen_the_newest_version(world: World) -> None:
    world.gateways.observe(ONE, None)
    assert not world.gateways.is_current("g1")
    world.gateways.observe(ONE, world.gateways.version)
    assert world.gateways.is_current("g1")
    world.gateways.count_change()
    assert not world.gateways.is_current("g1")


def test_one_that_tells_is_there_though_it_does_not_ask(world: World) -> None:
    world.gateways.observe(ONE, None)
    world.gateways.present["g1"] = (ONE, time.monotonic() - GATEWAY_GONE_S - 1, "7.1")
    world.gateways.acknowledge("g1")
    world.gateways.acknowledge("unknown")
    world.gateways.forget_silent()
    assert {name: seen for name, (_, _, seen) in world.gateways.present.items()} == {"g1": "7.1"}


def test_one_that_falls_silent_is_forgotten_with_what_it_counted_now(world: World) -> None:
    world.gateways.observe(ONE, None)
    world.gateways.observe(TWO, None)
    world.ledger.add(Observation("g1", {}, queued={"a": 3}), time.monotonic())
    world.gateways.present["g1"] = (ONE, time.monotonic() - GATEWAY_GONE_S - 1, None)
    world.gateways.forget_silent()
    assert list(world.gateways.present) == ["g2"] and world.ledger.queued("a") == 0
    assert world.said()[-1].endswith("is gone: no contact for 12 s") and world.changes == 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_was_desired_is_what_the_newest_snapshot_said(world: World, order: tuple[int, int]) -> None:
    old: dict[str, Any] = {"args": "old"}
    new: dict[str, Any] = {"args": "new"}
    assert world.gateways.newest_desired() is None
    hellos = [(replace(ONE, desired=old), "abc.9"), (replace(TWO, desired=new), "abc.10")]
    for number in order:
        world.gateways.observe(*hellos[number])
    assert world.gateways.newest_desired() == new
