"""Slow start: a tenth at first, all of it after the window, nobody held back when all are new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.lifecycle.slow_start import warm_weights, warmth


@pytest.mark.parametrize(("age_s", "share"), [(0, 0.1), (3, 0.1), (15, 0.5), (30, 1.0), (99, 1.0)])
def test_it_grows_with_age(age_s: float, share: float) -> None:
    assert warmth(age_s, 30) == share
    assert warm_weights({"new": 2.0, "old": 2.0}, {"new": age_s, "old": 500}, 30) == {"new": 2 * share, "old": 2.0}


def test_no_window_is_no_slow_start() -> None:
    assert warmth(0, 0) == 1.0


def test_when_all_are_equally_new_nobody_is_held_back() -> None:
    assert warm_weights({"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 2.0}, 30) == {"a": 1.0, "b": 3.0}
    assert warm_weights({}, {}, 30) == {}


def test_one_whose_age_is_unknown_counts_as_old() -> None:
    assert warm_weights({"a": 1.0, "b": 1.0}, {"a": 0.0}, 30) == {"a": 0.1, "b": 1.0}


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.01, 9) | st.just(0.0), st.floats(0, 99)), min_size=1))
def test_weights_never_grow_and_the_oldest_keeps_its_own(fleet: dict[str, tuple[float, float]]) -> None:
    weights = {name: weight for name, (weight, _) in fleet.items()}
    ages = {name: age for name, (_, age) in fleet.items()}
    warm = warm_weights(weights, ages, 30)
    assert all(warm[name] <= weights[name] for name in weights)
    oldest = max(ages, key=lambda name: ages[name])
    assert warm[oldest] == weights[oldest]
