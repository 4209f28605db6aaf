"""Autoscaling: what is asked of the policy for each region, what is remembered, what an operator may set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Settings, parse
from cluster.desired.autoscaling import OPERATOR, Autoscaling, ScalingChange, bounds, counted, with_counts
from cluster.desired.state import Counts, InstanceCount, State
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import InstanceCounts, Observation, Registration

SCALING = {"minInstances": 2, "maxInstances": 8, "targetConnections": 5, "downscaleDelay": "20s"}


def settings(regions: dict[str, Any] | None = None, scaling: dict[str, Any] | None = SCALING, **more: Any) -> Settings:
    block = {
        "agent": "m:a",
        "regions": regions or {"eu": {"instances": 2}},
        **({"scaling": scaling} if scaling else {}),
        **more,
    }
    return parse({"agents": {"shop": block}}, Path("/nowhere"))


class World:
    """A Controller's second, again and again: records appear as the counts ask for them, and share the load."""

    def __init__(self, settings: Settings, counts: Counts | None = None) -> None:
        self.settings = settings
        self.counts: Counts = {} if counts is None else counts
        self.registry = Registry(lambda: None)
        self.autoscaling = Autoscaling(self.registry, self.counts)
        self.now = 0.0
        self.made = 0

    def add(self, region: str = "eu", version: str = "v1", *, cpu: float | None = 0.0) -> InstanceRecord:
        self.made += 1
        record = self.registry.admit(
            Registration(
                agent="shop", version=version, region=region, app=f"shop.{version}.{region}", replica=f"r{self.made}",
                host="h", port=1, pid=1, node="n", started_at=0.0,
            )
        )  # fmt: skip
        record.answering = record.well = True
        record.cpu_percent = cpu
        return record

    def count(self, region: str = "eu") -> int:
        return with_counts(self.settings, self.counts).agents["shop"].regions[region].instances

    def obey(self, region: str = "eu") -> None:
        records = self.registry.of("shop", "v1", region)
        for record in records[self.count(region) :]:
            self.registry.remove(record.registration.replica)
        for _ in range(self.count(region) - len(records)):
            self.add(region)

    def run(self, seconds: int, load: float = 0, cpu: float = 0, *, obey: bool = True) -> list[ScalingChange]:
        """`load` requests in flight and `cpu` percent altogether, in each region."""
        changes = []
        for _ in range(seconds):
            for region in self.settings.agents["shop"].regions:
                if obey:
                    self.obey(region)
                records = self.registry.of("shop", None, region)
                for index, record in enumerate(records):
                    record.in_flight = int(load) // len(records) + (index < int(load) % len(records))
                    if record.cpu_percent is not None:
                        record.cpu_percent = cpu / len(records)
            self.now += 1
            changes += self.autoscaling.look(self.settings, self.now, 1000 + self.now)
        return changes


def test_four_times_the_load_is_met_within_seconds_and_taken_back_after_the_delay() -> None:
    world = World(settings())
    world.run(30, load=10)
    assert world.count() == 2
    (change,) = world.run(6, load=40)
    assert (change.before, change.after, world.count()) == (2, 8, 8)
    assert str(change).startswith("shop in eu: 2 -> 8 instances (requests in flight ")
    changes = world.run(90, load=10)
    assert world.count() == 2
    assert all(change.before > change.after >= change.before // 2 for change in changes)
    assert changes[-1].reason == "requests in flight per instance: 2.5, target 5; the load was low enough for 20 s"


def test_cpu_alone_makes_more_where_it_is_the_target() -> None:
    world = World(settings(scaling={"minInstances": 1, "maxInstances": 6, "targetCPU": 50}))
    world.run(10, load=100, cpu=50)
    assert world.count() == 2
    world.run(10, load=0, cpu=200)
    assert world.count() == 4


def test_each_region_has_its_own_count_and_its_own_bounds() -> None:
    world = World(settings({"eu": {"maxInstances": 3}, "us": {"minInstances": 4, "maxInstances": 20}}))
    world.run(20, load=60)
    assert (world.count("eu"), world.count("us")) == (3, 12)
    agent = world.settings.agents["shop"]
    assert (bounds(agent, "eu"), bounds(agent, "us")) == ((2, 3), (4, 20))


def test_it_starts_with_instances_within_the_bounds() -> None:
    assert World(settings({"eu": {"instances": 5}})).count() == 5
    assert World(settings({"eu": {"instances": 1}})).count() == 2
    assert World(settings({"eu": {"instances": 99}})).count() == 8


def test_a_controller_that_restarts_goes_on_from_the_count_it_had_and_takes_nothing_away_at_first() -> None:
    world = World(settings())
    world.run(20, load=40)
    again = World(world.settings, State.from_json(json.loads(json.dumps(State(counts=world.counts).to_json()))).counts)
    assert again.count() == 8
    again.run(19, load=0)
    assert again.count() == 8


def test_a_controller_that_lost_its_state_goes_on_from_what_runs() -> None:
    world = World(settings())
    for _ in range(6):
        world.add()
    (change,) = world.run(1, load=30, obey=False)
    assert (world.count(), change.reason) == (6, "found running")
    assert world.run(15, load=30) == []


def test_instances_that_start_are_not_taken_for_idle_ones_and_ask_for_no_more() -> None:
    world = World(settings())
    for _ in range(2):
        world.add()
    world.run(10, load=40, obey=False)
    assert world.count() == 8
    world.run(60, load=40, obey=False)
    assert world.count() == 8, "the two that run carry all of it, six are being started"


def test_what_is_not_known_since_the_restart_takes_nothing_away() -> None:
    world = World(settings(scaling={**SCALING, "downscaleDelay": 0}), {"shop": {"eu": entry(6)}})
    for _ in range(6):
        world.add(cpu=None)
    world.run(60, obey=False)
    assert world.count() == 6


def test_draining_and_unhealthy_instances_do_not_count() -> None:
    world = World(settings())
    for _ in range(4):
        world.add()
    world.registry.drain("r3", "stopping")
    world.registry.eject("r4", "dead")
    for replica in ("r3", "r4"):
        record = world.registry.get(replica)
        assert record is not None
        record.in_flight = 1000
    for _ in range(30):
        world.now += 1
        world.autoscaling.look(world.settings, world.now, 0)
    assert world.count() <= 4


def test_requests_that_wait_at_a_gateway_ask_for_instances_too() -> None:
    world = World(settings())
    for _ in range(10):
        world.autoscaling.observe(Observation("g1", {}, queued={"shop": 25}), world.now)
        world.autoscaling.observe(Observation("g2", {}, queued={"shop": 5}), world.now)
        world.run(1, load=10)
    assert world.count() == 8
    world.run(60, load=10)
    assert world.count() == 2, "a gateway that says nothing any more has nothing waiting"


def test_a_region_that_may_have_none_comes_back_when_a_request_finds_nobody() -> None:
    world = World(settings({"eu": {"instances": 0}}, {**SCALING, "minInstances": 0}))
    world.run(60)
    assert world.count() == 0
    world.autoscaling.observe(Observation("g1", {}, refusals={("shop", 503): 3}), world.now)
    world.run(1)
    assert world.count() == 1


def test_what_a_canary_carries_is_part_of_the_demand() -> None:
    world = World(settings())
    for _ in range(2):
        world.add(version="v2")
    world.run(30, load=20)
    assert world.count() == 4, "20 in flight over both versions, 5 each"


def test_another_count_in_the_file_wins_over_what_is_remembered() -> None:
    world = World(settings())
    world.run(20, load=40)
    world.settings = settings({"eu": {"instances": 3}})
    assert world.count() == 3
    world.run(1, load=15)
    world.settings = settings({"eu": {"instances": 2}})
    world.run(1, load=10)
    assert world.count() == 2, "the eight of before are forgotten"


def test_without_scaling_the_files_count_holds_whatever_comes() -> None:
    world = World(settings(scaling=None))
    assert world.run(30, load=1000, cpu=1000) == []
    assert world.count() == 2


def test_scaling_that_leaves_the_file_leaves_the_files_count() -> None:
    world = World(settings())
    world.run(20, load=40)
    world.settings = settings(scaling=None)
    world.run(1, load=40)
    assert world.count() == 2


def test_an_operators_count_holds_until_the_file_says_another() -> None:
    world = World(settings(scaling=None))
    change = world.autoscaling.fix(world.settings, "shop", "eu", 5, 7.0)
    assert str(change) == "shop in eu: 2 -> 5 instances (set by an operator)"
    world.run(5)
    assert world.count() == 5
    assert world.autoscaling.last("shop", "eu") == (OPERATOR, 7.0)
    world.settings = settings({"eu": {"instances": 3}}, scaling=None)
    world.run(1)
    assert world.count() == 3
    assert world.autoscaling.last("shop", "eu") == ("", None)


def test_an_operators_count_is_where_autoscaling_goes_on_from() -> None:
    world = World(settings())
    world.run(30, load=10)
    world.autoscaling.fix(world.settings, "shop", None, 6, 7.0)
    world.run(15, load=10)
    assert world.count() == 6, "nothing is taken away before the delay"
    world.run(60, load=10)
    assert world.count() == 2


@pytest.mark.parametrize(
    ("agent", "region", "instances", "sentence"),
    [
        ("shop", "eu", 9, "9 instances of shop in eu are out of bounds: minInstances and maxInstances allow 2 to 8"),
        ("shop", "eu", 1, "1 instances of shop in eu are out of bounds: minInstances and maxInstances allow 2 to 8"),
        ("shop", "us", 3, "shop runs in eu, ap: 'us' is not one of its regions"),
        ("shop", None, 3, "shop runs in eu, ap: choose one with --region"),
        ("shoe", "eu", 3, r"there is no agent 'shoe' \(known: shop\)"),
    ],
)
def test_a_count_that_cannot_be_is_refused_with_a_sentence(
    agent: str, region: str | None, instances: int, sentence: str
) -> None:
    world = World(settings({"eu": {}, "ap": {}}))
    with pytest.raises(ValueError, match=sentence):
        world.autoscaling.fix(world.settings, agent, region, instances, 0.0)
    assert world.counts == {}


def test_a_fixed_count_is_bounded_by_the_regions_own_bounds() -> None:
    world = World(settings({"eu": {"instances": 2, "maxInstances": 3}}, scaling=None))
    with pytest.raises(ValueError, match="4 instances of shop in eu are out of bounds"):
        world.autoscaling.fix(world.settings, "shop", "eu", 4, 0.0)


def test_what_is_no_longer_in_the_file_is_forgotten() -> None:
    world = World(settings({"eu": {}, "us": {}}))
    world.run(5, load=10)
    world.settings = settings({"us": {}})
    world.run(1, load=10)
    assert list(world.counts["shop"]) == ["us"]
    world.autoscaling.look(parse({"agents": {}}, Path("/nowhere")), 100, 100)
    assert world.counts == {}


def test_up_waits_for_the_files_count_and_after_a_change_by_itself_only_for_the_minimum() -> None:
    world = World(settings({"eu": {"instances": 3}}))
    world.run(1)
    agent = with_counts(world.settings, world.counts).agents["shop"]
    assert world.autoscaling.least(agent, "eu") == 3
    world.run(20, load=40)
    agent = with_counts(world.settings, world.counts).agents["shop"]
    assert (agent.regions["eu"].instances, world.autoscaling.least(agent, "eu")) == (8, 2)
    world.autoscaling.fix(world.settings, "shop", "eu", 7, 0.0)
    agent = with_counts(world.settings, world.counts).agents["shop"]
    assert world.autoscaling.least(agent, "eu") == 7


def test_the_counts_hold_for_whichever_version_the_settings_are_of() -> None:
    world = World(settings())
    world.run(20, load=40)
    other = settings(version="v2").agents["shop"]
    assert counted(other, world.counts).regions["eu"].instances == 8


def entry(instances: int) -> InstanceCount:
    return InstanceCount(instances, file=2)


@pytest.mark.parametrize("target", [{}, {"targetConnections": 2}, {"targetCPU": 50}])
def test_an_idle_agent_that_may_have_none_goes_to_zero_whatever_the_target(target: dict[str, Any]) -> None:
    world = World(settings(scaling={"minInstances": 0, "maxInstances": 2, "downscaleDelay": 5, **target}))
    world.run(60, load=0, cpu=2)
    assert world.count() == 0


def test_requests_between_two_reports_keep_the_last_instance() -> None:
    world = World(settings(scaling={"minInstances": 0, "maxInstances": 2, "downscaleDelay": 5, "targetConnections": 2}))
    for _ in range(30):
        world.autoscaling.observe(
            Observation("g1", {("shop", "v1", "eu", "instance-1"): InstanceCounts(codes={200: 1})}), world.now
        )
        world.run(2, load=0)
    assert world.count() == 1
    world.run(60, load=0)
    assert world.count() == 0


def test_the_first_waiting_request_wakes_the_scaler_once() -> None:
    world = World(settings({"eu": {"instances": 0}}, {**SCALING, "minInstances": 0}))
    assert world.autoscaling.observe(Observation("g1", {}, queued={"shop": 1}), world.now)
    assert not world.autoscaling.observe(Observation("g1", {}, queued={"shop": 2}), world.now)
    world.run(1)
    assert world.count() == 1
