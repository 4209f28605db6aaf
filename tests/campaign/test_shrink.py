"""The shrinker finds the faults that a violation needs, in a bounded number of runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.campaign.plan import Plan, PlannedFault
from tests.campaign.shrink import shrink


def plan_of(count: int) -> Plan:
    return Plan(1, 60.0, tuple(PlannedFault(number, float(number), "kill_instance", number) for number in range(1, count + 1)))


def numbers(plan: Plan) -> set[int]:
    return {fault.number for fault in plan.faults}


def needs(*faults: int) -> Callable[[Plan], bool]:
    return lambda plan: numbers(plan) >= set(faults)


@pytest.mark.parametrize("faults", [(1,), (20,), (3, 17), (10, 11), (1, 9, 20)])
def test_what_remains_is_what_the_violation_needs(faults: tuple[int, ...]) -> None:
    shrunk = shrink(plan_of(20), needs(*faults), runs=200)
    assert numbers(shrunk.plan) == set(faults)
    assert shrunk.minimal


def test_a_violation_that_needs_no_fault_takes_one_run() -> None:
    shrunk = shrink(plan_of(20), needs(), runs=200)
    assert (shrunk.plan.faults, shrunk.runs) == ((), 1)


def test_the_runs_are_bounded_and_the_answer_is_a_plan_that_failed() -> None:
    failed: list[set[int]] = []

    def still_fails(plan: Plan) -> bool:
        fails = numbers(plan) >= {3, 17}
        if fails:
            failed.append(numbers(plan))
        return fails

    shrunk = shrink(plan_of(20), still_fails, runs=10)
    assert shrunk.runs == 10
    assert not shrunk.minimal
    assert numbers(shrunk.plan) == failed[-1]


def test_a_violation_that_does_not_happen_again_leaves_the_whole_plan() -> None:
    shrunk = shrink(plan_of(6), lambda plan: False, runs=100)
    assert numbers(shrunk.plan) == {1, 2, 3, 4, 5, 6}


def test_times_and_chance_stay_those_of_the_plan() -> None:
    plan = plan_of(8)
    assert shrink(plan, needs(5), runs=100).plan.faults == (plan.faults[4],)
