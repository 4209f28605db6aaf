"""What the cost of metrics is taken to be, from given runs; nothing is started here."""

from __future__ import annotations

from typing import Any

import pytest
from metrics_cost import COUNTING, render, summary

MACHINE: dict[str, Any] = {
    "cpu": "a CPU",
    "cores": 2,
    "memory_gb": 4,
    "system": "Linux",
    "load_before": 0.1,
    "versions": {"wrk": "4"},
}


def runs(*added: float) -> list[dict[str, Any]]:
    """A machine that gets slower from round to round, which is not the metrics' doing."""
    made = []
    for number, share in enumerate(added, 1):
        for metrics, factor in (("on", 1 + share), ("off", 1.0)):
            cpu_us = 100 * number * factor
            made.append({"metrics": metrics, "round": number, "cpu_us": cpu_us, "per_second": 1e6 / cpu_us})
    return made


def test_each_round_is_compared_with_itself_and_the_median_counts() -> None:
    found = summary(runs(0.02, 0.03, 0.5, 0.01, 0.04))
    assert found["added_percent"] == 3.0
    assert found["added_percent_95"] == [1.0, 50.0]
    assert (found["rounds"], found["off"]["cpu_us"]) == (5, 300)


@pytest.mark.parametrize(
    ("added", "said"), [([0.04] * 9, "holds"), ([0.06] * 9, "is missed"), ([0.0, 0.06] * 9, "may hold or not")]
)
def test_the_limit_holds_only_when_all_of_the_interval_is_below_it(added: list[float], said: str) -> None:
    found = {**summary(runs(*added)), "calls_us": 1.0}
    assert f"The limit of 5 % {said}" in render("today", MACHINE, found)


def test_what_is_switched_off_is_there() -> None:
    assert all(callable(getattr(owner, name)) for owner, names in COUNTING.items() for name in names)
