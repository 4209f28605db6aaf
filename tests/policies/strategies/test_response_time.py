"""response-time: the slow get less, and only as much less as they are slow."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from policies.base import Instance, Request
from policies.strategies.least_connections import LeastConnections
from policies.strategies.response_time import ResponseTime

REQUEST = Request()


def test_a_slow_one_is_picked_when_the_fast_ones_have_more_to_do_than_it_is_slow() -> None:
    slow, fast = Instance("slow", slowness=4.0), Instance("fast")
    strategy = ResponseTime(Random(1))
    for load, expected in ((0, fast), (2, fast), (4, slow)):
        fast.load = load
        assert strategy.pick([slow, fast], REQUEST) is expected


def test_work_that_piles_up_is_shared_by_speed() -> None:
    instances = [Instance(f"i{number}", slowness=slowness) for number, slowness in enumerate((1.0, 1.0, 2.0, 4.0))]
    strategy = ResponseTime(Random(1))
    for _ in range(1100):
        chosen = strategy.pick(instances, REQUEST)
        assert chosen is not None
        chosen.load += 1
    assert [instance.load for instance in instances] == pytest.approx([400, 400, 200, 100], abs=2)


def test_with_nothing_known_of_speeds_it_is_least_connections() -> None:
    instances = [Instance(f"i{number}", load=number % 3, weight=1 + number % 2) for number in range(12)]
    one, other = ResponseTime(Random(1)), LeastConnections(Random(1))
    assert [one.pick(instances, REQUEST) for _ in range(50)] == [other.pick(instances, REQUEST) for _ in range(50)]


def test_a_newcomer_is_one_among_equals() -> None:
    instances = [Instance(f"i{number}", slowness=1.0) for number in range(4)]
    strategy = ResponseTime(Random(1))
    counts = Counter(strategy.pick(instances, REQUEST) for _ in range(4000))
    assert all(850 <= count <= 1150 for count in counts.values())
