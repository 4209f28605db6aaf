"""The cases: (rule, change of a sound record)."""

from __future__ import annotations

from collections.abc import Callable

from tests.campaign.made_up import BEGAN
from tests.campaign.record import Record

Change = Callable[[Record], object]
BROKEN: list[tuple[str, Change]] = []
NEAR_MISSES: list[tuple[str, Change]] = []
AT = BEGAN + 50  # when most of them happen


def breaks(rule: str) -> Callable[[Change], Change]:
    return _into(BROKEN, rule)


def keeps(rule: str) -> Callable[[Change], Change]:
    return _into(NEAR_MISSES, rule)


def _into(cases: list[tuple[str, Change]], rule: str) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        cases.append((rule, change))
        return change

    return register
