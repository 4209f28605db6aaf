"""Slowness: being busy is not being slow, failing fast is not being fast, nothing known is 1."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.load.slowness import HIGHEST, KEPT_ALL, KEPT_EACH, KEPT_LEAST, LOWEST, Slowness, level_of


def measured(speeds: dict[str, float], answers: int, now: float = 1.0) -> Slowness:
    slowness = Slowness(window_s=60, refresh_s=1)
    for _ in range(answers):
        for name, seconds in speeds.items():
            slowness.record(name, 0, seconds, now)
    return slowness


def of(slowness: Slowness, instance: str, now: float) -> float:
    return slowness.all(now).get(instance, 1.0)


def test_levels_are_single_counts_then_half_octaves() -> None:
    assert [level_of(count) for count in (-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16, 23, 24, 32)] == [
        *(0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 10),
    ]


@given(st.integers(0, 10_000))
def test_levels_never_fall_as_the_count_grows(count: int) -> None:
    assert level_of(count) <= level_of(count + 1) <= level_of(count) + 1


def test_one_that_nothing_is_known_of_has_1() -> None:
    slowness = measured({"a": 1.0, "b": 9.0, "c": 1.0}, 50)
    assert of(slowness, "new", 1.0) == 1.0


def test_twice_the_time_is_nearly_twice_as_slow_after_a_hundred_answers() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0, "slow": 2.0}, 100)
    assert of(slowness, "slow", 1.0) == pytest.approx(2 ** (100 / 120))
    assert of(slowness, "a", 1.0) == 1.0


@pytest.mark.parametrize(("answers", "expected"), [(1, 1.0), (5, 10 ** (5 / 25)), (20, 10**0.5), (180, 10**0.9)])
def test_the_prior_is_worth_twenty_answers(answers: int, expected: float) -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "slow": 10.0}, answers)
    assert of(slowness, "slow", 1.0) == pytest.approx(expected)


def test_a_quarter_more_or_a_fifth_less_counts_as_the_same() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0, "more": 1.25, "less": 0.8, "slow": 1.4}, 200)
    assert [of(slowness, name, 1.0) for name in ("more", "less")] == [1.0, 1.0]
    assert of(slowness, "slow", 1.0) > 1.25


def test_it_stays_within_a_tenth_and_ten() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0, "frozen": 1e6, "instant": 0.0}, 200)
    assert (of(slowness, "frozen", 1.0), of(slowness, "instant", 1.0)) == (HIGHEST, LOWEST)


def test_being_busy_is_not_being_slow() -> None:
    """Two do all the work at eight times the load and so take eight times as long; a third is really slow."""
    slowness = Slowness()
    for _ in range(100):
        for name, factor in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("slow", 3.0)):
            for load in (0, 7):
                slowness.record(name, load, factor * (load + 1), 1.0)
    for _ in range(400):
        slowness.record("a", 7, 8.0, 1.0)
    assert of(slowness, "a", 1.0) == 1.0
    assert of(slowness, "slow", 1.0) > 2.5


@pytest.mark.parametrize("turn_s", [1.0, 100.0])
def test_failing_fast_is_not_being_fast_however_long_turns_take(turn_s: float) -> None:
    slowness = Slowness()
    for _ in range(100):
        for name in ("a", "b", "c"):
            slowness.record(name, 3, turn_s, 1.0)
        slowness.record("failing", 0, 0.001, 1.0, failed=True)
        slowness.record("failing too", 3, 0.001, 1.0, failed=True)
    assert of(slowness, "failing", 1.0) == of(slowness, "failing too", 1.0) == HIGHEST
    assert of(slowness, "a", 1.0) == 1.0


def test_every_failure_in_a_row_doubles_it_at_once_until_a_success() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0}, 50)
    assert of(slowness, "a", 1.0) == 1.0
    answers = [slowness.record("a", 0, 0.001, 1.1, failed=True) for _ in range(5)]
    assert answers == [2.0, 4.0, 8.0, HIGHEST, HIGHEST]
    assert of(slowness, "a", 1.2) == HIGHEST
    assert slowness.record("a", 0, 1.0, 1.3) == 1.0
    assert of(slowness, "a", 1.4) == 1.0
    assert slowness.record("a", 0, 1.0, 1.5) is None


def test_a_fast_one_that_begins_to_fail_is_no_longer_fast() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0, "fast": 0.1}, 200)
    assert of(slowness, "fast", 1.0) < 0.2
    assert slowness.record("fast", 0, 0.001, 1.0, failed=True) == 2.0


def test_now_and_then_a_failure_is_forgiven() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0}, 50)
    for number in range(50):
        slowness.record("a", 0, 1.0, 1.0, failed=number % 5 == 0)
    assert of(slowness, "a", 2.0) == 1.0


@given(
    before=st.lists(st.floats(0.01, 100), max_size=40),
    failures=st.integers(3, 60),
    seconds=st.floats(0, 1000),
    level=st.integers(0, 20),
)
def test_one_that_only_fails_is_never_below_5_after_three_failures_and_recovers(
    before: list[float], failures: int, seconds: float, level: int
) -> None:
    slowness = measured({"b": 1.0, "c": 1.0, "d": 1.0}, 50, now=0.0)
    for number, time in enumerate(before):
        slowness.record("a", level, time, number / 10)
    for number in range(1, failures + 1):
        now = 5 + number / 10
        at_once = slowness.record("a", level, seconds, now, failed=True)
        if number >= 3:
            assert at_once is not None
            assert 5 <= at_once <= HIGHEST
            assert 5 <= of(slowness, "a", now) <= HIGHEST
    for _ in range(failures + len(before) + 1):
        slowness.record("a", 0, 1.0, 12.0)
    assert of(slowness, "a", 14.0) <= 1.25


def test_failures_leave_by_age_too() -> None:
    slowness = measured({"a": 1.0, "b": 1.0}, 50, now=0.0)
    for _ in range(9):
        slowness.record("failing", 0, 0.001, 0.0, failed=True)
    assert of(slowness, "failing", 59.0) == HIGHEST
    assert of(slowness, "failing", 61.0) == 1.0
    assert slowness.record("failing", 0, 0.001, 61.0, failed=True) == 2.0


def test_a_load_that_is_no_whole_number_is_rounded() -> None:
    slowness = Slowness()
    for _ in range(100):
        for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("slow", 4.0)):
            slowness.record(name, 1.6, seconds, 1.0)
            slowness.record(name, 2, seconds, 1.0)
    assert of(slowness, "slow", 1.0) > 3


def test_answers_leave_by_age_and_with_the_last_the_instance() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "slow": 4.0}, 50, now=0.0)
    assert of(slowness, "slow", 59.0) > 2
    assert of(slowness, "slow", 61.0) == 1.0
    assert dict(slowness.all(61.0)) == {}


def test_a_new_process_under_an_old_name_starts_at_1() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "slow": 4.0}, 50)
    assert of(slowness, "slow", 1.0) > 2
    slowness.forget("slow")
    assert of(slowness, "slow", 1.0) == 1.0
    slowness.forget("never seen")


def test_it_is_recomputed_only_every_so_often() -> None:
    slowness = measured({"a": 1.0, "b": 1.0, "c": 1.0}, 50)
    assert of(slowness, "c", 1.0) == 1.0
    for _ in range(90):
        slowness.record("c", 0, 5.0, 1.5)
    assert of(slowness, "c", 1.9) == 1.0
    assert of(slowness, "c", 2.0) > 2


def test_memory_is_bounded() -> None:
    slowness = measured({"a": 1.0}, 2 * KEPT_EACH)
    assert len(slowness._answers["a"]) == KEPT_EACH
    slowness = measured({f"i{number}": 1.0 for number in range(1000)}, 40)
    kept = sum(map(len, slowness._answers.values()))
    assert kept <= max(KEPT_ALL, 1000 * KEPT_LEAST)


@pytest.mark.parametrize("seed", range(20))
def test_equal_instances_with_heavy_tailed_turns_are_seldom_told_apart(seed: int) -> None:
    rng = Random(seed)
    slowness = Slowness()
    for _ in range(300):
        for name in "abcdefgh":
            slowness.record(name, rng.randrange(4), rng.lognormvariate(0, 1.5), 1.0)
    ratios = [of(slowness, name, 1.0) for name in "abcdefgh"]
    assert all(0.6 < ratio < 1.7 for ratio in ratios)
    assert ratios.count(1.0) >= 4


def test_it_shows_what_it_has_found() -> None:
    assert repr(Slowness(window_s=60, refresh_s=1)) == "<Slowness over 60 s: no responses>"
    slowness = measured({"a": 1.0, "b": 1.0}, answers=KEPT_LEAST + 1)
    of(slowness, "b", 10.0)
    assert repr(slowness) == "<Slowness over 60 s: a 1.00, b 1.00>"
