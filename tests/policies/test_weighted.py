"""SmoothWeighted: exact shares over a period, no bursts when names come and go."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.weighted import SmoothWeighted, weights_of

CASES = json.loads((Path(__file__).parents[1] / "cases" / "weighted.json").read_text())["cases"]
NAMES = "abcdefgh"
weights = st.lists(st.integers(0, 9), min_size=1, max_size=8).map(lambda values: dict(zip(NAMES, values, strict=False)))
seeds = st.none() | st.integers(0, 99)


def made(given_weights: dict[str, Any], seed: int | None = None) -> SmoothWeighted:
    return SmoothWeighted(given_weights, None if seed is None else Random(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_sequence_is_nginxs(case: dict[str, Any]) -> None:
    turns = made(case["weights"])
    assert [turns.pick(list(case["weights"])) for _ in case["picks"]] == case["picks"]


@given(weights, seeds)
def test_every_window_of_one_period_has_exactly_the_weights_as_counts(given_weights: dict[str, int], seed: int | None) -> None:
    turns = made(given_weights, seed)
    period = sum(given_weights.values())
    picks = [turns.pick(given_weights) for _ in range(3 * period)]
    for start in range(2 * period):
        assert Counter(picks[start : start + period]) == +Counter(given_weights)


@given(weights, seeds, st.data())
@settings(max_examples=40)
def test_only_eligible_names_with_a_weight_are_picked(
    given_weights: dict[str, int], seed: int | None, data: st.DataObject
) -> None:
    turns = made(given_weights, seed)
    for _ in range(10):
        asked = data.draw(st.lists(st.sampled_from([*NAMES, "unknown"]), unique=True))
        usable = {name for name in asked if given_weights.get(name, 0) > 0}
        picked = turns.pick(asked)
        assert picked in usable if usable else picked is None


@given(weights, st.integers(0, 99), st.randoms(use_true_random=True))
def test_the_order_of_the_question_does_not_matter(given_weights: dict[str, int], seed: int, shuffler: Random) -> None:
    one, other = made(given_weights, seed), made(given_weights, seed)
    for _ in range(20):
        asked = list(given_weights)
        shuffler.shuffle(asked)
        assert one.pick(given_weights) == other.pick(asked)


@given(st.integers(2, 8), seeds, st.data())
def test_equal_weights_are_exact_from_the_first_pick_after_any_history(
    size: int, seed: int | None, data: st.DataObject
) -> None:
    names = NAMES[:size]
    turns = made(dict.fromkeys(names, 3.0), seed)
    for asked in data.draw(st.lists(st.sets(st.sampled_from(names)), max_size=30)):
        turns.pick(asked)
    stable = data.draw(st.sets(st.sampled_from(names), min_size=1))
    picks = [turns.pick(stable) for _ in range(3 * len(stable))]
    for start in range(2 * len(stable)):
        assert set(picks[start : start + len(stable)]) == stable


def test_one_left_out_once_is_next_and_nobody_else_loses_a_turn() -> None:
    turns = made(dict.fromkeys(NAMES, 1))
    first = [turns.pick(NAMES) for _ in range(2)]
    retried = turns.pick("abdefgh")  # it was c's turn
    assert (first, retried) == (["a", "b"], "d")
    assert [turns.pick(NAMES) for _ in range(6)] == ["c", "e", "f", "g", "h", "a"]


@given(weights, st.integers(0, 99))
@settings(max_examples=50)
def test_weighted_shares_hold_in_spite_of_retries(given_weights: dict[str, int], seed: int) -> None:
    """Now and then somebody is left out of one pick: the shares stay within a pick or two of the weights."""
    rng = Random(seed)
    turns = made(given_weights, seed)
    usable = [name for name, weight in given_weights.items() if weight]
    total = sum(given_weights.values())
    counts: Counter[str | None] = Counter()
    for number in range(40 * total):
        left_out = rng.choice(usable) if number % 20 == 7 and len(usable) > 1 else None
        counts[turns.pick([name for name in usable if name != left_out])] += 1
    for name in usable:
        assert abs(counts[name] - 40 * given_weights[name]) <= 4 + 40 * total / 20


def test_one_that_joins_gets_its_share_and_no_burst() -> None:
    for seed in range(50):
        turns = made({"a": 5, "b": 3}, seed)
        for _ in range(seed):
            turns.pick("ab")
        turns.update({"a": 5, "b": 3, "new": 2})
        picks = [turns.pick(["a", "b", "new"]) for _ in range(10)]
        assert 1 <= picks.count("new") <= 3
        assert ("new", "new") not in set(pairwise(picks))


def test_equals_that_join_together_are_not_all_served_first() -> None:
    together = 0
    for seed in range(50):
        turns = made(dict.fromkeys("abcd", 1), seed)
        for _ in range(10):
            turns.pick("abcd")
        turns.update(dict.fromkeys(NAMES, 1))
        picks = [turns.pick(NAMES) for _ in range(8)]
        assert set(picks) == set(NAMES)
        together += set(picks[:4]) == set("efgh")
    assert together < 10


def test_one_that_returns_after_long_gets_one_turn_per_round() -> None:
    for seed in range(20):
        turns = made({"a": 4, "b": 2, "c": 1}, seed)
        for _ in range(200):
            turns.pick("ab")
        picks = [turns.pick("abc") for _ in range(14)]
        assert 1 <= picks.count("c") <= 3


def test_gateways_start_at_different_places() -> None:
    openings = Counter(made({"a": 5, "b": 1, "c": 1}, seed).pick("abc") for seed in range(700))
    assert 430 <= openings["a"] <= 570
    assert min(openings["b"], openings["c"]) >= 60
    equal = Counter(made(dict.fromkeys(NAMES, 1), seed).pick(NAMES) for seed in range(800))
    assert max(equal.values()) <= 150


def test_new_weights_take_effect_at_once() -> None:
    turns = made({"a": 1, "b": 9}, 1)
    for _ in range(25):
        turns.pick("ab")
    turns.update({"a": 9, "b": 1})
    assert 8 <= [turns.pick("ab") for _ in range(10)].count("a") <= 10
    turns.update({"a": 0, "b": 0})
    assert turns.pick("ab") is None
    assert turns.pick([]) is None


def test_weights_that_are_no_numbers_are_nothing() -> None:
    turns = made({"a": float("nan"), "b": -1.0, "c": float("inf"), "d": 0.5})
    assert {turns.pick("abcd") for _ in range(5)} == {"d"}
    assert repr(turns) == "<SmoothWeighted even, 1 of 1 names eligible>"


def test_a_name_without_a_weight_has_the_mean_of_the_others() -> None:
    assert weights_of({"a": 1, "b": 3}, "abc") == {"a": 1, "b": 3, "c": 2}
    assert weights_of({}, "ab") == {"a": 1, "b": 1}


def test_whoever_was_away_the_names_at_hand_are_soon_even() -> None:
    """More than one pick is never repaid: it would come as a burst."""
    for seed in range(60):
        chance, turns = Random(seed), made({"a": 50, "b": 1, "c": 50, "d": 50})
        for _ in range(60):
            turns.pick([name for name in "abcd" if chance.random() < 0.6])
        picks = Counter(turns.pick("cd") for _ in range(20))
        assert abs(picks["c"] - picks["d"]) <= 4
