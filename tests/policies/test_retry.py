"""Retry: what may be repeated, how many at once, how long to wait."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.retry import BACKOFF_S, Budget, Spending, allowed, backoff_s, repeatable

CASES = json.loads((Path(__file__).parents[1] / "cases" / "retry.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['retrying']} of {case['active']}")
def test_the_budget_is_envoys(case: dict[str, Any]) -> None:
    assert allowed(case["active"], case["retrying"], case["budget_percent"], case["minimum"]) is case["allowed"]


@given(st.integers(0, 5000), st.floats(0, 100), st.integers(0, 10))
def test_filled_to_the_brim_retries_are_the_larger_of_minimum_and_percentage_and_not_one_more(
    active: int, budget_percent: float, minimum: int
) -> None:
    retrying = 0
    while allowed(active, retrying, budget_percent, minimum):
        retrying += 1
    assert retrying == max(minimum, int(active * budget_percent / 100))


def test_a_fraction_of_a_retry_is_none() -> None:
    assert not allowed(24, 4, 20)  # 20 % of 24 is 4.8


@pytest.mark.parametrize(("attempt", "below_s"), [(1, 0.025), (2, 0.075), (3, 0.175), (4, 0.25), (5, 0.25), (99, 0.25)])
def test_waits_are_spread_over_everything_below_the_ceiling(attempt: int, below_s: float) -> None:
    rng = Random(attempt)
    waits = [backoff_s(attempt, rng) for _ in range(2000)]
    assert min(waits) < below_s / 50
    assert below_s * 0.98 < max(waits) < below_s
    assert sum(waits) / len(waits) == pytest.approx(below_s / 2, rel=0.05)


@given(st.integers(-3, 50), st.integers())
def test_no_wait_is_negative_or_above_a_quarter_second(attempt: int, seed: int) -> None:
    assert 0 <= backoff_s(attempt, Random(seed)) < BACKOFF_S[-1]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_methods_may_be_repeated(method: str) -> None:
    assert repeatable(method, False)


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "QUERY", ""])
def test_others_only_with_an_idempotency_key(method: str) -> None:
    assert not repeatable(method, False)
    assert repeatable(method, True)


def test_a_request_takes_one_retry_from_the_budget_however_often_it_asks() -> None:
    budget = Budget(20)
    request = budget.begin()
    assert request.retry()
    assert request.retry()
    assert repr(budget) == "<Budget 1 of 1 retry, 20 % or 3 may>"
    request.end()
    assert (budget.active, budget.retrying) == (0, 0)


def test_a_retry_that_is_answered_makes_room_for_another_before_its_stream_ends() -> None:
    budget = Budget(0, minimum=1)
    one, other = budget.begin(), budget.begin()
    assert one.retry()
    assert not other.retry()
    one.answered()
    assert other.retry()
    assert budget.active == 2


def test_one_that_has_ended_gets_no_retry() -> None:
    request = Budget(20).begin()
    request.end()
    assert not request.retry()


def test_a_budget_changed_while_running_holds_from_the_next_retry() -> None:
    budget = Budget(100, minimum=0)
    requests = [budget.begin() for _ in range(4)]
    assert [request.retry() for request in requests[:2]] == [True, True]
    budget.budget_percent = 50
    assert not requests[2].retry()


@given(st.lists(st.tuples(st.sampled_from(["begin", "begin", "retry", "retry", "answered", "end"]), st.integers(0, 99))))
def test_counts_are_right_whatever_happens_and_the_budget_holds_when_a_retry_is_given(steps: list[tuple[str, int]]) -> None:
    budget, requests, retrying = Budget(20), list[Spending](), set[Spending]()
    ended = set[Spending]()
    for step, choice in steps:
        if step == "begin":
            requests.append(budget.begin())
            continue
        if not requests:
            continue
        request = requests[choice % len(requests)]
        if step == "retry":
            room = len(retrying) + 1 <= max(3, 0.2 * (len(requests) - len(ended)))
            given_leave = request.retry()
            assert given_leave is (request in retrying or (request not in ended and room))
            retrying |= {request} if given_leave else set()
        else:
            getattr(request, step)()
            retrying.discard(request)
            ended |= {request} if step == "end" else set()
        assert (budget.active, budget.retrying) == (len(requests) - len(ended), len(retrying))


def test_a_request_ends_once_however_often_that_is_said() -> None:
    budget = Budget(20)
    spending = budget.begin()
    assert spending.retry()
    for _ in range(2):
        spending.end()
        assert (budget.active, budget.retrying) == (0, 0)
    assert not spending.retry(), "it has ended"
