"""level_loads: Envoy's integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.priority import Level, level_loads

CASES = json.loads((Path(__file__).parents[1] / "cases" / "priority.json").read_text())["cases"]


@st.composite
def a_level(draw: st.DrawFn) -> Level:
    healthy, degraded, bad, excluded = (draw(st.integers(0, 12)) for _ in range(4))
    return Level(healthy + degraded + bad + excluded, healthy, degraded, excluded)


levels = st.lists(a_level(), min_size=1, max_size=6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_integers_are_envoys(case: dict[str, Any]) -> None:
    loads = level_loads([Level(**level) for level in case["levels"]])
    for name in ("healthy", "degraded", "panic"):
        if case[name] is not None:
            assert getattr(loads, name) == case[name]


@given(levels)
def test_loads_are_percents_that_make_100(given_levels: list[Level]) -> None:
    loads = level_loads(given_levels)
    everything = [*loads.healthy, *loads.degraded]
    assert min(everything) >= 0
    assert sum(everything) == (100 if any(level.total for level in given_levels) else 0)


@given(levels)
def test_nothing_goes_where_nobody_is_healthy_unless_all_panic(given_levels: list[Level]) -> None:
    loads = level_loads(given_levels)
    if not all(loads.panic):
        for level, healthy, degraded in zip(given_levels, loads.healthy, loads.degraded, strict=True):
            assert healthy == 0 or level.healthy > 0
            assert degraded == 0 or level.degraded > 0


@given(levels)
def test_there_is_no_panic_while_the_levels_together_carry_everything(given_levels: list[Level]) -> None:
    carried = sum(min(100, 140 * level.healthy // level.counted) for level in given_levels if level.counted)
    if carried >= 100:
        assert not any(level_loads(given_levels).panic)


@given(st.integers(0, 20))
def test_the_first_level_loses_no_traffic_by_getting_healthier(total: int) -> None:
    shares = [level_loads([Level(total, healthy), Level(5, 5)]).healthy[0] for healthy in range(total + 1)]
    assert shares == sorted(shares)


@pytest.mark.parametrize(("healthy", "stays"), [(4, 100), (3, 100), (2, 70), (1, 35), (0, 0)])
def test_half_of_a_region_keeps_70_percent(healthy: int, stays: int) -> None:
    assert level_loads([Level(4, healthy), Level(4, 4)]).healthy == [stays, 100 - stays]


def test_those_never_checked_count_neither_way() -> None:
    assert level_loads([Level(4, 1, excluded=3), Level(1, 1)]).healthy == [100, 0]


def test_no_levels_and_no_instances_give_no_loads() -> None:
    assert level_loads([]).healthy == []
    assert level_loads([Level(0, 0), Level(0, 0)]).healthy == [0, 0]
    assert level_loads([Level(0, 0), Level(3, 0)]).healthy == [0, 100]


def test_another_overprovisioning_and_panic_threshold() -> None:
    assert level_loads([Level(2, 1), Level(2, 2)], overprovision=200).healthy == [100, 0]
    assert level_loads([Level(10, 2)], panic=20).panic == [False]
