"""A plan is drawn up from its seed alone, and each part of it is a plan."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.campaign.faults import FAULTS, Kind
from tests.campaign.plan import FIRST_S, Plan, draw_up


def kinds(**cards: int) -> dict[str, Kind]:
    return {name: Kind(lambda stage, chance, fault: None, cards=count) for name, count in cards.items()}


def test_a_seed_gives_the_same_plan_and_another_seed_another_one() -> None:
    assert draw_up(1, 120, FAULTS) == draw_up(1, 120, FAULTS)
    assert draw_up(1, 120, FAULTS).faults != draw_up(2, 120, FAULTS).faults


def test_faults_are_as_far_apart_as_the_gap_says_and_end_with_the_plan() -> None:
    faults = draw_up(3, 200, kinds(a=1, b=1), gap_s=(4, 6), pairs=0).faults
    gaps = [after.at_s - before.at_s for before, after in pairwise(faults)]
    assert faults[0].at_s == FIRST_S
    assert min(gaps) >= 3.99
    assert max(gaps) <= 6.01
    assert 190 <= faults[-1].at_s < 200


@pytest.mark.parametrize("pairs, sizes", [(0.0, {1}), (1.0, {2})])
def test_a_share_of_the_faults_comes_in_pairs(pairs: float, sizes: set[int]) -> None:
    plan = draw_up(4, 100, kinds(a=1, b=1), pairs=pairs)
    assert set(Counter(fault.at_s for fault in plan.faults).values()) == sizes


def test_kinds_take_turns_as_often_as_they_have_cards() -> None:
    plan = draw_up(5, 180, kinds(often=3, seldom=1), gap_s=(1, 1), pairs=0)
    assert Counter(fault.kind for fault in plan.faults[:40]) == {"often": 30, "seldom": 10}


def test_a_kind_keeps_its_distance_and_its_card_is_not_lost() -> None:
    far = {"far": Kind(lambda stage, chance, fault: None, cards=5, apart_s=30), **kinds(near=1)}
    faults = draw_up(6, 100, far, gap_s=(5, 5), pairs=0).faults
    moments = [fault.at_s for fault in faults if fault.kind == "far"]
    assert len(moments) == 4
    assert len(faults) == 20  # another kind takes the place of one that would come too soon
    assert min(after - before for before, after in pairwise(moments)) >= 30


def test_every_kind_of_the_registry_comes_in_a_plan_of_five_minutes() -> None:
    planned = {fault.kind for seed in range(3) for fault in draw_up(seed, 300, FAULTS).faults}
    assert planned == FAULTS.keys()


def test_a_part_of_a_plan_keeps_times_and_chance() -> None:
    plan = draw_up(7, 60, FAULTS)
    part = plan.only({2, 5})
    assert part.faults == (plan.faults[1], plan.faults[4])
    assert (part.seed, part.seconds) == (plan.seed, plan.seconds)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = draw_up(8, 60, FAULTS)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
