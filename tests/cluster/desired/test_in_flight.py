"""Requests in flight are one figure everywhere: the sum of what the gateways count."""

from __future__ import annotations

import asyncio

from cluster.admin.views import Views
from cluster.messages import InstanceCounts, Observation
from tests.cluster.desired.world import World


def observe(world: World, gateway: str, active: int, batch: int) -> None:
    (record, *_) = world.controller.registry.of("a", None, "us")
    world.run(world.controller.observe(Observation(gateway, {record.key: InstanceCounts(active=active)}, batch=batch)))


def shown(world: World) -> set[int]:
    """The first instance's count, as each reader has it."""
    (record, *_) = world.controller.registry.of("a", None, "us")
    (row, *_) = [row for row in Views(world.controller.view).instances("a") if row["id"] == record.id]
    record.cpu_percent = 1.0
    load = world.controller._autoscaling._load(world.controller.view.settings.agents["a"], "us", 0.0)
    return {
        row["connections"], row["active_connections"], load.in_flight, asyncio.run(world.controller.in_flight())["a"],
        world.controller.view.totals.active(record.key),
    }  # fmt: skip


def test_every_reader_shows_the_sum_over_the_gateways(world: World) -> None:
    observe(world, "g1", 32, 1)
    observe(world, "g2", 10, 1)
    assert shown(world) == {42}
    observe(world, "g1", 3, 2)
    assert shown(world) == {13}


def test_a_gateway_that_is_gone_counts_no_more(world: World) -> None:
    observe(world, "g1", 32, 1)
    observe(world, "g2", 10, 1)
    world.controller._totals.forget_gateway("g2")
    world.controller._changed()
    assert shown(world) == {32}
