"""round-robin: exact turns, whoever comes and goes."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from policies.base import Instance, Request
from policies.strategies.round_robin import RoundRobin

REQUEST = Request()


def fleet(*weights: float) -> list[Instance]:
    return [Instance(f"instance-{number}", weight=weight) for number, weight in enumerate(weights, start=1)]


def picks(strategy: RoundRobin, instances: list[Instance], count: int) -> list[str]:
    return [chosen.id for _ in range(count) if (chosen := strategy.pick(instances, REQUEST)) is not None]


@given(st.integers(1, 64), st.integers(0, 99))
def test_every_n_picks_in_a_row_reach_each_of_n_once(size: int, seed: int) -> None:
    instances = fleet(*[1.0] * size)
    answered = picks(RoundRobin(Random(seed)), instances, 3 * size)
    for start in range(2 * size + 1):
        assert len(set(answered[start : start + size])) == size


def test_weights_50_30_20_are_exact_in_every_ten() -> None:
    answered = picks(RoundRobin(Random(4)), fleet(50, 30, 20), 100)
    for start in range(91):
        assert Counter(answered[start : start + 10]) == {"instance-1": 5, "instance-2": 3, "instance-3": 2}


@given(st.integers(3, 12), st.integers(0, 99), st.data())
def test_retries_and_departures_leave_the_rest_even(size: int, seed: int, data: st.DataObject) -> None:
    instances = fleet(*[1.0] * size)
    strategy = RoundRobin(Random(seed))
    for _ in range(data.draw(st.integers(0, 40))):
        first = strategy.pick(instances, REQUEST)
        if data.draw(st.booleans()):
            second = strategy.pick([instance for instance in instances if instance is not first], REQUEST)
            assert second is not first
    staying = instances[: data.draw(st.integers(1, size))]
    answered = picks(strategy, staying, 2 * len(staying))
    for start in range(len(staying) + 1):
        assert len(set(answered[start : start + len(staying)])) == len(staying)


def test_a_changed_weight_counts_at_once_and_a_replaced_instance_is_the_one_returned() -> None:
    instances = fleet(1, 1)
    strategy = RoundRobin(Random(1))
    picks(strategy, instances, 5)
    instances[0].weight = 0.0
    assert set(picks(strategy, instances, 5)) == {"instance-2"}
    replaced = fleet(1, 1)
    assert strategy.pick(replaced, REQUEST) in replaced


def test_an_instance_that_joins_gets_no_burst() -> None:
    for seed in range(30):
        strategy = RoundRobin(Random(seed))
        picks(strategy, fleet(1, 1, 1), 50 + seed)
        answered = picks(strategy, fleet(1, 1, 1, 1), 8)
        assert answered.count("instance-4") == 2


def test_several_gateways_do_not_march_in_step() -> None:
    instances = fleet(*[1.0] * 8)
    gateways = [RoundRobin(Random(seed)) for seed in range(40)]
    openings = Counter(picks(gateway, instances, 1)[0] for gateway in gateways)
    assert max(openings.values()) <= 14
