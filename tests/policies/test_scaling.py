"""Scaling: what a metric proposes, how fast it is followed, and what is never done."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.scaling import History, Metric, desired, mean_of, proposal

CASES = json.loads((Path(__file__).parents[1] / "cases" / "scaling.json").read_text())["cases"]
LOAD = st.floats(0, 200, allow_nan=False)


def run(
    load: Callable[[int], float],
    seconds: int,
    current: int = 2,
    target: float = 5,
    bounds: tuple[int, int] = (1, 100),
    history: History | None = None,
    start: int = 0,
) -> list[int]:
    """The count after each second, when `load(second)` is spread evenly over what runs."""
    history = history or History(60)
    counts = []
    for second in range(start, start + seconds):
        value = load(second) / max(1, current)
        current = desired(current, {"connections": Metric(value, target)}, *bounds, history, float(second))
        counts.append(current)
    return counts


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_one_metric_proposes_what_kubernetes_would(case: dict[str, Any]) -> None:
    assert proposal(case["current"], case["value"], case["target"]) == case["expected"]


@given(st.integers(1, 500), st.floats(0.9, 1.1), st.floats(0.1, 1e6))
def test_within_the_tolerance_it_proposes_what_runs(current: int, ratio: float, target: float) -> None:
    assert proposal(current, ratio * target, target) == current


@given(st.integers(0, 100), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0.1, 1e3))
def test_more_load_never_proposes_fewer(current: int, one: float, other: float, target: float) -> None:
    assert proposal(current, min(one, other), target) <= proposal(current, max(one, other), target)


@given(st.integers(1, 100), st.floats(0.1, 1e4), st.floats(0.1, 1e3))
def test_what_is_proposed_brings_the_mean_to_the_target_or_near_it(current: int, value: float, target: float) -> None:
    assert current * value <= proposal(current, value, target) * target * 1.1 * (1 + 1e-6)


def test_where_nothing_runs_what_waits_proposes() -> None:
    assert [proposal(0, waiting, 5) for waiting in (0, 1, 5, 6)] == [0, 1, 1, 2]


@given(st.lists(LOAD, min_size=1, max_size=100), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20))
def test_it_stays_within_the_bounds_whatever_comes(loads: list[float], current: int, one: int, other: int) -> None:
    bounds = (min(one, other), max(one, other))
    counts = run(loads.__getitem__, len(loads), current, bounds=bounds)
    assert all(bounds[0] <= count <= bounds[1] for count in counts)


@given(st.lists(LOAD, min_size=30, max_size=200), st.integers(1, 100), st.floats(0, 60))
def test_it_never_takes_away_more_than_half_but_the_last_one(loads: list[float], current: int, delay_s: float) -> None:
    counts = [current, *run(loads.__getitem__, len(loads), current, bounds=(0, 100), history=History(delay_s))]
    assert all(after >= before - before // 2 or before == 1 for before, after in pairwise(counts))


@given(st.lists(LOAD, min_size=1, max_size=60), LOAD, LOAD, st.integers(1, 20))
def test_after_the_same_past_more_load_never_gives_fewer(past: list[float], one: float, other: float, current: int) -> None:
    def last(value: float) -> int:
        history = History(20)
        for second, before in enumerate(past):
            desired(current, {"cpu": Metric(before, 50)}, 1, 100, history, float(second))
        return desired(current, {"cpu": Metric(value, 50)}, 1, 100, history, float(len(past)))

    assert last(min(one, other)) <= last(max(one, other))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("instances", [1, 2, 3, 5, 8, 40])
def test_ten_percent_of_noise_around_the_target_changes_nothing_in_five_minutes(instances: int, seed: int) -> None:
    rng = Random(seed)
    load = lambda _: instances * 5 * rng.uniform(0.9, 1.1)  # noqa: E731
    assert set(run(load, 300, instances, history=History(30))) == {instances}


@pytest.mark.parametrize("seed", range(20))
def test_noise_on_a_load_between_two_counts_settles_on_one(seed: int) -> None:
    rng = Random(seed)
    counts = run(lambda _: 17 * rng.uniform(0.9, 1.1), 300, history=History(60))
    changes = sum(before != after for before, after in pairwise(counts[60:]))
    assert changes <= 1
    assert counts[-1] in (3, 4)


def test_twice_what_runs_is_there_at_once() -> None:
    counts = run(lambda second: 10 if second < 60 else 40, 110)
    assert counts[59] == 2
    assert set(counts[62:]) == {8}


def test_a_second_of_four_times_the_load_is_no_reason() -> None:
    assert set(run(lambda second: 40 if second == 60 else 10, 90)) == {2}


def test_a_little_more_is_there_after_fifteen_seconds_and_not_before() -> None:
    counts = run(lambda second: 10 if second < 60 else 15, 120)
    changed = counts.index(3)
    assert 75 <= changed <= 60 + 6 + 15
    assert set(counts[changed:]) == {3}


def test_less_is_there_when_nothing_more_was_asked_for_during_the_whole_delay() -> None:
    counts = run(lambda second: 40 if second < 100 else 5, 400, current=8, history=History(120))
    changed = next(second for second, count in enumerate(counts) if count < 8)
    assert 99 + 120 <= changed <= 99 + 120 + 6
    assert counts[-1] == 1


def test_the_steps_down_are_fifteen_seconds_apart() -> None:
    counts = run(lambda _: 0, 200, current=16, history=History(10))
    falls = [second for second in range(1, 200) if counts[second] < counts[second - 1]]
    assert [counts[second] for second in falls] == [8, 4, 2, 1]
    assert all(after - before >= 15 for before, after in pairwise(falls))


@pytest.mark.parametrize("current", [1, 2, 3, 20])
def test_an_idle_region_that_may_have_none_ends_with_none(current: int) -> None:
    assert run(lambda _: 0, 200, current=current, bounds=(0, 20), history=History(5))[-1] == 0


def test_a_little_load_keeps_the_last_one() -> None:
    assert run(lambda _: 0.01, 200, current=3, bounds=(0, 20), history=History(5))[-1] == 1


def test_one_that_has_just_begun_to_look_takes_nothing_away_before_the_delay_is_over() -> None:
    assert set(run(lambda _: 0, 60, current=4, history=History(60))) == {4}


def test_the_larger_wish_wins_and_says_why() -> None:
    history = History()
    for second in range(20):
        metrics = {"CPU percent": Metric(40.0, 70), "connections": Metric(12.0, 10)}
        count = desired(5, metrics, 1, 10, history, float(second))
    assert count == 6
    assert history.reason == "connections per instance: 12, target 10"


def test_bounds_win_over_delays_and_steps_and_say_so() -> None:
    history = History()
    assert desired(10, {"connections": Metric(100, 10)}, 1, 3, history, 0) == 3
    assert history.reason == "outside the bounds of 1 to 3"
    assert desired(0, {"connections": Metric(None, 10)}, 2, 3, History(), 0) == 2


def test_without_numbers_it_stays() -> None:
    history = History(5)
    for second in range(60):
        assert desired(4, {"cpu": Metric(None, 70), "connections": Metric(0, 5)}, 1, 9, history, float(second)) == 4


def test_a_metric_without_numbers_does_not_hold_up_the_other_ones_growth() -> None:
    history = History(5)
    metrics = {"cpu": Metric(None, 70), "connections": Metric(50, 5)}
    assert desired(2, metrics, 1, 100, history, 0) == 20


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ((80.0, 80.0), 80.0),
        ((90.0, None), 50.0),  # growing: the new one counts as idle, and the direction turns round
        ((200.0, None), 100.0),
        ((10.0, None), 30.0),  # shrinking: the new one counts as on target
        ((None, None), None),
        ((), None),
    ],
)
def test_an_instance_without_numbers_never_speaks_for_the_change(values: tuple[float | None, ...], mean: float | None) -> None:
    assert mean_of(values, 50) == mean


@given(st.lists(st.one_of(st.none(), st.floats(0, 1000)), min_size=1, max_size=20), st.floats(1, 500))
def test_missing_numbers_only_ever_bring_the_mean_nearer_to_the_target(values: list[float | None], target: float) -> None:
    known = [value for value in values if value is not None]
    mean = mean_of(values, target)
    if not known:
        assert mean is None
        return
    plain = sum(known) / len(known)
    assert mean is not None
    assert min(plain, target) - 1e-6 <= mean <= max(plain, target) + 1e-6


@given(st.floats(20, 150), st.integers(1, 30))
def test_a_steady_load_ends_at_one_count_that_carries_it(load: float, current: int) -> None:
    counts = run(lambda _: load, 300, current, history=History(20))
    assert len(set(counts[200:])) == 1
    assert ceil(load / 5 / 1.1 - 1e-6) <= counts[-1] <= ceil(load / 5 / 0.9 + 1)


def test_a_history_shows_what_it_remembers() -> None:
    history = History(60)
    history.propose(1, 2, 0.0)
    assert repr(history) == "<History 2 proposals, down after 60 s>"
