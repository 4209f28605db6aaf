"""Every rule finds the record that breaks it, and lets pass the one that only looks so."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.campaign.checker import RULES, Tolerances, check, judge
from tests.campaign.checker_cases import BROKEN, NEAR_MISSES, Change
from tests.campaign.checker_cases.answers import a_connection_that_broke_as_another_gateway_was_killed, a_slow_answer
from tests.campaign.made_up import END, add_execution, sound_record
from tests.campaign.record import Record


def test_a_sound_record_breaks_no_rule() -> None:
    verdict = judge(sound_record())
    assert (verdict.violations, verdict.excused) == ([], {})


def test_every_rule_has_a_broken_record_and_a_near_miss() -> None:
    assert {rule for rule, _ in BROKEN} == {rule for rule, _ in NEAR_MISSES} == set(RULES)


def test_every_rule_is_explained_to_users() -> None:
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text("utf-8")
    assert [rule for rule in RULES if f"`{rule}`" not in page] == []


def names(cases: list[tuple[str, Change]]) -> list[str]:
    return [f"{rule}: {change.__name__}" for rule, change in cases]


@pytest.mark.parametrize(("rule", "change"), BROKEN, ids=names(BROKEN))
def test_a_broken_record_is_found(rule: str, change: Change) -> None:
    record = sound_record()
    change(record)
    assert {violation.rule for violation in check(record)} == {rule}


@pytest.mark.parametrize(("rule", "change"), NEAR_MISSES, ids=names(NEAR_MISSES))
def test_a_near_miss_is_excused(rule: str, change: Change) -> None:
    record = sound_record()
    change(record)
    assert check(record) == []


def test_a_violation_says_when_around_which_faults_and_what_the_client_saw() -> None:
    record = sound_record()
    a_connection_that_broke_as_another_gateway_was_killed(record)
    (violation,) = check(record)
    assert violation.at == 50.0
    assert violation.faults[0].startswith("kill_gateway ")
    assert violation.requests == (record.requests[-1].id,)
    assert violation.client.startswith("broken")


def test_tolerances_widen_a_rule() -> None:
    record = sound_record()
    a_slow_answer(record)
    assert check(record, replace(Tolerances(), late_s=4.0)) == []


def test_an_empty_record_is_no_proof() -> None:
    assert {violation.rule for violation in check(Record())} == {"has-end", "settled"}


SOME = settings(max_examples=30, deadline=None)  # a record is thousands of objects

# --- records as they may come --------------------------------------------------------------------------------------------


@SOME
@given(st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(chance: random.Random) -> None:
    record = sound_record()
    for lines in (record.requests, record.counted, record.executions, record.samples, record.sizes):
        chance.shuffle(lines)
    assert check(record) == []


@SOME
@given(st.integers(min_value=0), st.sampled_from([101, 103, 106]))
def test_any_execution_of_a_post_that_is_doubled_is_found(number: int, pid: int) -> None:
    record = sound_record()
    posts = [one for one in record.requests + record.counted if one.method == "POST" and not one.repeatable]
    request = posts[number % len(posts)]
    add_execution(record, request, pid)
    assert ("once", (request.id,)) in {(violation.rule, violation.requests) for violation in check(record)}


@SOME
@given(st.integers(min_value=1, max_value=30))
def test_any_lost_count_is_found(lost: int) -> None:
    record = sound_record()
    record.facts.counted_after["200"] -= lost
    assert {violation.rule for violation in check(record)} == {"counts"}


@SOME
@given(st.integers(min_value=0))
def test_any_request_without_an_end_is_found(number: int) -> None:
    record = sound_record()
    request = record.requests.pop(number % len(record.requests))
    record.executions = [run for run in record.executions if run.request != request.id]
    assert "has-end" in {violation.rule for violation in check(record)}


@SOME
@given(st.floats(min_value=0.0, max_value=1.0))
def test_any_count_left_in_the_end_is_found(which: float) -> None:
    record = sound_record()
    rows = record.samples[-1].instances
    rows[int(which * (len(rows) - 1))].active_connections = 1
    assert record.samples[-1].at < END
    assert {violation.rule for violation in check(record)} == {"zero"}
