"""Thresholds of health checks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.lifecycle.health_threshold import HealthThreshold


def told(verdict: HealthThreshold, answers: str, unhealthy: int = 3, healthy: int = 2) -> str:
    """The verdict after each answer (p passed, f failed): w well, i ill, ? not known."""
    word = {None: "?", True: "w", False: "i"}
    seen = ""
    for answer in answers:
        verdict.record(answer == "p", unhealthy, healthy)
        seen += word[verdict.well]
    return seen


def test_the_first_pass_ever_makes_it_well_and_afterwards_the_thresholds_count() -> None:
    assert told(HealthThreshold(), "pffpfffpfpp") == "wwwwwwiiiiw"


def test_a_newcomer_that_only_fails_is_ill_after_the_threshold_and_then_needs_the_other() -> None:
    assert told(HealthThreshold(), "fffpp") == "??iiw"


def test_a_newcomer_that_fails_once_and_passes_once_is_well() -> None:
    assert told(HealthThreshold(), "fp") == "?w"


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5))
def test_it_changes_only_after_as_many_in_a_row_as_are_asked_for(answers: list[bool], unhealthy: int, healthy: int) -> None:
    verdict = HealthThreshold(True)
    for index, answer in enumerate(answers):
        before = verdict.well
        assert verdict.record(answer, unhealthy, healthy) == (verdict.well != before)
        if verdict.well != before:
            needed = unhealthy if before else healthy
            assert answers[index + 1 - needed : index + 1] == [not before] * needed
