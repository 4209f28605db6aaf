"""Capacity: which instances have no place, and what the sentence about it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import parse
from cluster.desired.apps import AppSpec, desired_apps
from cluster.fleet.registry import Registry
from cluster.messages import Registration
from cluster.placement.capacity import PATIENCE_S, Capacity, explained
from cluster.placement.serve import NodeResources


def spec(replicas: int = 4, resources: dict[str, Any] | None = None, labelled: bool = True) -> AppSpec:
    block = {"agent": "m:a", "regions": {"eu": {"instances": replicas}}, "resources": resources or {"cpus": 0.5}}
    return desired_apps(parse({"agents": {"shop": block}}, Path("/nowhere")), {"eu"} if labelled else set())["shop.v1.eu"]


def node(region: str | None, free: float, total: float = 2, **more: float) -> NodeResources:
    return NodeResources(region, {"CPU": total, **more}, {"CPU": free} if free else {})


def registry(count: int) -> Registry:
    made = Registry(lambda: None)
    for number in range(count):
        made.admit(Registration("shop", "v1", "eu", "shop.v1.eu", f"r{number}", "h", 1, 1, "n", 0.0))
    return made


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([node("eu", 0)], "the region's only node has 0 of 2 CPU free"),
        ([node("eu", 0.4), node("eu", 0.1), node("us", 2)], "the region's 2 nodes have 0.4 of 2 CPU, 0.1 of 2 CPU free"),
        ([node("us", 2), node(None, 2)], "no Ray node carries the label region=eu"),
    ],
)
def test_it_says_what_is_missing_where(nodes: list[NodeResources], sentence: str) -> None:
    assert explained(spec(), 2, nodes) == f"region eu: 2 of 4 instances of shop are waiting for 0.5 CPU each: {sentence}"


def test_room_for_one_more_is_no_lack_of_room() -> None:
    assert explained(spec(), 2, [node("eu", 0.1), node("eu", 0.5)]) is None


def test_regions_that_are_only_names_use_any_node() -> None:
    assert explained(spec(labelled=False), 2, [node(None, 1)]) is None


def test_all_of_what_an_instance_needs_must_be_on_one_node() -> None:
    said = explained(spec(resources={"cpus": 1, "gpus": 1}), 1, [node("eu", 2), node("eu", 0, GPU=1)])
    assert said is not None
    assert (
        "waiting for 1 CPU and 1 GPU each: the region's 2 nodes have 2 of 2 CPU and 0 of 0 GPU, 0 of 2 CPU and 0 of 1 GPU free"
        in said
    )


def test_only_what_stays_away_longer_than_a_start_takes_is_missing() -> None:
    capacity, known = Capacity(), registry(2)
    assert capacity.short([spec()], known, 0) == []
    assert capacity.short([spec()], known, PATIENCE_S - 1) == []
    assert [missing for _, missing in capacity.short([spec()], known, PATIENCE_S)] == [2]


def test_an_app_that_was_complete_in_between_is_given_the_time_again() -> None:
    capacity = Capacity()
    capacity.short([spec()], registry(2), 0)
    capacity.short([spec()], registry(4), 10)
    assert capacity.short([spec()], registry(3), PATIENCE_S) == []


def test_a_draining_instance_is_missing_and_one_too_many_is_not() -> None:
    capacity, known = Capacity(), registry(4)
    known.drain("r1", "stopping")
    capacity.short([spec()], known, 0)
    assert [missing for _, missing in capacity.short([spec()], known, PATIENCE_S)] == [1]
    assert capacity.short([spec(3)], known, PATIENCE_S) == []
