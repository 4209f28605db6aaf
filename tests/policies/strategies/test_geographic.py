"""geographic: the nearest region that has somebody, the least busy in it."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from policies.base import Instance, Options, Request
from policies.regions.distance import Distances
from policies.strategies.geographic import Geographic


def fleet() -> list[Instance]:
    regions = {"us-east-1": 1, "eu-west-1": 2, "ap-southeast-1": 3}
    return [
        Instance(f"{region}/{n}", region=region, priority=priority) for region, priority in regions.items() for n in range(2)
    ]


def answering(instances: list[Instance], region: str, options: Options | None = None) -> set[str]:
    strategy = Geographic(Random(1), options)
    return {chosen.region for _ in range(20) if (chosen := strategy.pick(instances, Request(region=region))) is not None}


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "ap-southeast-1"])
def test_a_client_is_answered_in_its_own_region(region: str) -> None:
    assert answering(fleet(), region) == {region}


@pytest.mark.parametrize(("client", "nearest"), [("eu-central-1", "eu-west-1"), ("japaneast", "ap-southeast-1")])
def test_a_client_from_elsewhere_is_answered_by_the_nearest(client: str, nearest: str) -> None:
    assert answering(fleet(), client) == {nearest}


def test_a_client_from_nowhere_is_answered_by_priority() -> None:
    assert answering(fleet(), "moon") == {"us-east-1"}


def test_inside_the_region_the_least_busy_answers() -> None:
    instances = fleet()
    instances[2].load = 3
    strategy = Geographic(Random(1))
    for _ in range(10):
        assert strategy.pick(instances, Request(region="eu-west-1")) is instances[3]


def test_a_region_without_weight_is_passed_over() -> None:
    instances = fleet()
    instances[2].weight = instances[3].weight = 0.0
    assert answering(instances, "eu-west-1") == {"us-east-1"}


def test_only_the_configured_regions_are_used() -> None:
    options = Options(regions=("ap-southeast-1", "us-east-1"))
    assert answering(fleet(), "eu-west-1", options) == {"us-east-1"}
    assert answering(fleet()[2:4], "eu-west-1", options) == set()


def test_configured_distances_are_obeyed() -> None:
    distances = Distances({"eu-central-1": {"ap-southeast-1": 1.0}})
    assert answering(fleet(), "eu-central-1", Options(distances=distances)) == {"ap-southeast-1"}


def test_regions_that_are_equally_near_share() -> None:
    instances = [Instance("a", region="mars"), Instance("b", region="venus")]
    strategy = Geographic(Random(1))
    counts = Counter(strategy.pick(instances, Request(region="moon")) for _ in range(1000))
    assert all(400 <= count <= 600 for count in counts.values())
