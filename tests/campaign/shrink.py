"""The smallest part of a plan with which a violation still happens, by delta debugging (Zeller and Hildebrandt, 2002).

A run is minutes, and chance plays a part in it: a run without the violation does not prove that it cannot happen. So the number
of runs is bounded, and the answer is the smallest plan that has shown the violation, not the smallest that could.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.campaign.plan import Plan


@dataclass(frozen=True)
class Shrunk:
    """`minimal`: without any one of its faults, the violation did not happen again."""

    plan: Plan
    runs: int
    minimal: bool


class _OutOfRuns(Exception):
    pass


def shrink(plan: Plan, still_fails: Callable[[Plan], bool], runs: int) -> Shrunk:
    """Try parts of a plan that is known to fail, at most so many."""
    smallest, count, parts = plan, 0, 2

    def fails(candidate: Plan) -> bool:
        nonlocal count
        if count == runs:
            raise _OutOfRuns
        count += 1
        return still_fails(candidate)

    try:
        if fails(plan.only(())):  # the load alone
            return Shrunk(plan.only(()), count, minimal=True)
        while len(smallest.faults) > 1:
            found = next(((part, new) for part, new in _candidates(smallest, parts) if fails(part)), None)
            if found is not None:
                smallest, parts = found
            elif parts >= len(smallest.faults):
                break
            else:
                parts = min(2 * parts, len(smallest.faults))
    except _OutOfRuns:
        return Shrunk(smallest, count, minimal=False)
    return Shrunk(smallest, count, minimal=True)


def _candidates(plan: Plan, parts: int) -> Iterator[tuple[Plan, int]]:
    """Each of so many parts alone, then each complement; with it, into how many parts to cut it next."""
    numbers = [fault.number for fault in plan.faults]
    cuts = [len(numbers) * index // parts for index in range(parts + 1)]
    chunks = [numbers[start:end] for start, end in pairwise(cuts)]
    yield from ((plan.only(chunk), 2) for chunk in chunks)
    if parts > 2:
        yield from ((plan.only(set(numbers) - set(chunk)), max(parts - 1, 2)) for chunk in chunks)
