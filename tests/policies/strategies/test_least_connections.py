"""least-connections: the least in hand per weight, ties at random."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from policies.base import Instance, Request
from policies.strategies.cheapest import FULL_SCAN
from policies.strategies.least_connections import LeastConnections

REQUEST = Request()


def fleet(*loads: int) -> list[Instance]:
    return [Instance(f"instance-{number}", load=load) for number, load in enumerate(loads, start=1)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=FULL_SCAN), st.integers(0, 99))
def test_nobody_has_less_than_the_one_picked(loads: list[int], seed: int) -> None:
    chosen = LeastConnections(Random(seed)).pick(fleet(*loads), REQUEST)
    assert chosen is not None
    assert chosen.load == min(loads)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=20))
def test_load_is_per_weight_with_the_new_request_counted(pairs: list[tuple[int, int]]) -> None:
    instances = [Instance(f"i{n}", load=load, weight=weight) for n, (load, weight) in enumerate(pairs)]
    chosen = LeastConnections(Random(1)).pick(instances, REQUEST)
    assert chosen is not None
    assert (chosen.load + 1) / chosen.weight == min((load + 1) / weight for load, weight in pairs)


def test_ties_are_broken_evenly_wherever_they_stand() -> None:
    strategy = LeastConnections(Random(1))
    instances = fleet(3, 1, 2, 1, 9, 1)
    counts = Counter(strategy.pick(instances, REQUEST) for _ in range(3000))
    assert set(counts) == {instances[1], instances[3], instances[5]}
    assert all(900 <= count <= 1100 for count in counts.values())


def test_a_large_fleet_is_sampled_and_the_sample_finds_a_good_one() -> None:
    instances = fleet(*range(1000))
    strategy = LeastConnections(Random(1))
    loads = sorted(chosen.load for _ in range(400) if (chosen := strategy.pick(instances, REQUEST)) is not None)
    assert loads[200] <= 20
    assert loads[-1] <= 150
