"""Thresholds of health checks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.lifecycle.health_threshold import HealthThreshold


def verdicts(threshold: HealthThreshold, checks: str, unhealthy: int = 3, healthy: int = 2) -> str:
    """Its verdict after each check (p passed, f failed): h healthy, u unhealthy, ? unknown."""
    word = {None: "?", True: "h", False: "u"}
    letters = ""
    for check in checks:
        threshold.record(check == "p", unhealthy, healthy)
        letters += word[threshold.healthy]
    return letters


def test_the_first_pass_ever_makes_it_well_and_afterwards_the_thresholds_count() -> None:
    assert verdicts(HealthThreshold(), "pffpfffpfpp") == "hhhhhhuuuuh"


def test_a_newcomer_that_only_fails_is_ill_after_the_threshold_and_then_needs_the_other() -> None:
    assert verdicts(HealthThreshold(), "fffpp") == "??uuh"


def test_a_newcomer_that_fails_once_and_passes_once_is_well() -> None:
    assert verdicts(HealthThreshold(), "fp") == "?h"


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5))
def test_it_changes_only_after_as_many_in_a_row_as_are_asked_for(answers: list[bool], unhealthy: int, healthy: int) -> None:
    verdict = HealthThreshold(True)
    for index, answer in enumerate(answers):
        before = verdict.healthy
        assert verdict.record(answer, unhealthy, healthy) == (verdict.healthy != before)
        if verdict.healthy != before:
            needed = unhealthy if before else healthy
            assert answers[index + 1 - needed : index + 1] == [not before] * needed


def test_it_shows_its_state() -> None:
    threshold = HealthThreshold()
    assert repr(threshold) == "<HealthThreshold: unknown, 0 against>"
    threshold.record(True, 3, 2)
    threshold.record(False, 3, 2)
    assert repr(threshold) == "<HealthThreshold: healthy, 1 against>"
