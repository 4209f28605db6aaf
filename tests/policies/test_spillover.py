"""LevelChooser: exact shares between levels, spilling when full, panic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from policies.base import Instance, Options, Request
from policies.regions.distance import Distances
from policies.spillover import MOST_VIEWS, ByDistance, LevelChooser

FIRST, SECOND, THIRD = "priority 1", "priority 2", "priority 3"


def fleet(*sizes: int, capacity: int = 0) -> list[list[Instance]]:
    names = iter(range(1, 1000))
    return [
        [Instance(f"instance-{next(names)}", region=f"r{level}", priority=level, capacity=capacity) for _ in range(size)]
        for level, size in enumerate(sizes, start=1)
    ]


def flat(levels: list[list[Instance]]) -> list[Instance]:
    return [instance for level in levels for instance in level]


def well(instances: Sequence[Instance]) -> list[Instance]:
    return [instance for instance in instances if instance.healthy and not instance.draining]


def drawn(chooser: LevelChooser, everyone: list[Instance], count: int, region: str = "local") -> Counter[str]:
    request = Request(region=region)
    counts: Counter[str] = Counter()
    for _ in range(count):
        label, found = chooser.narrow(well(everyone), everyone, request)
        assert all(instance.healthy for instance in found)
        assert found or not well(everyone)
        counts[label] += 1
    return counts


def test_all_healthy_stays_in_the_first_level() -> None:
    levels = fleet(3, 3, 3)
    label, found = LevelChooser(Random(1)).narrow(flat(levels), flat(levels), Request())
    assert (label, found) == (FIRST, levels[0])


def test_half_of_the_first_level_keeps_exactly_seven_of_every_ten() -> None:
    levels = fleet(4, 4)
    for instance in levels[0][:2]:
        instance.healthy = False
    chooser = LevelChooser(Random(1))
    for _ in range(5):
        assert drawn(chooser, flat(levels), 10) == {FIRST: 7, SECOND: 3}


def test_the_numbers_of_the_levels_need_not_follow_one_another() -> None:
    everyone = [Instance("b", priority=30), Instance("a", priority=-2)]
    assert LevelChooser(Random(1)).narrow(everyone, everyone, Request()) == ("priority -2", [everyone[1]])


def test_one_level_gives_back_what_it_was_given() -> None:
    everyone = flat(fleet(3))
    eligible = everyone[:2]
    assert LevelChooser(Random(1)).narrow(eligible, everyone, Request())[1] is eligible


def test_a_first_level_without_anyone_left_hands_over_to_the_next() -> None:
    levels = fleet(2, 2, 2)
    chooser = LevelChooser(Random(1))
    assert chooser.narrow(levels[1] + levels[2], flat(levels), Request()) == (SECOND, levels[1])
    assert chooser.narrow(levels[2], flat(levels), Request()) == (THIRD, levels[2])
    assert chooser.narrow([], flat(levels), Request()) == ("", ())


def test_recovery_is_noticed_at_once() -> None:
    levels = fleet(2, 2)
    chooser = LevelChooser(Random(1))
    for healthy, label in ((True, FIRST), (False, SECOND), (True, FIRST)):
        for instance in levels[0]:
            instance.healthy = healthy
        assert drawn(chooser, flat(levels), 20) == {label: 20}


def test_a_stamp_says_that_nothing_has_changed() -> None:
    levels = fleet(2, 2)
    chooser = LevelChooser(Random(1))
    everyone = flat(levels)
    assert chooser.narrow(everyone, everyone, Request(), stamp=1)[0] == FIRST
    for instance in levels[0]:
        instance.healthy = False
    assert chooser.narrow(everyone, everyone, Request(), stamp=2)[0] == SECOND


def test_instances_never_checked_do_not_drive_traffic_away() -> None:
    levels = fleet(4, 4)
    for instance in levels[0][1:]:
        instance.checked = instance.healthy = False
    assert drawn(LevelChooser(Random(1)), flat(levels), 20) == {FIRST: 20}


def test_draining_instances_neither_count_nor_get_anything() -> None:
    levels = fleet(4, 4)
    for instance in levels[0][1:]:
        instance.draining = True
    label, found = LevelChooser(Random(1)).narrow(flat(levels), flat(levels), Request())
    assert (label, found) == (FIRST, levels[0][:1])
    levels[0][0].draining = True
    assert LevelChooser(Random(1)).narrow(flat(levels), flat(levels), Request()) == (SECOND, levels[1])


def test_a_panicking_level_spreads_over_all_that_answer() -> None:
    (only,) = fleet(4)
    for instance in only[1:]:
        instance.healthy = False
    answering = only[:3]  # the fourth does not even answer: the caller leaves it out
    assert LevelChooser(Random(1)).narrow(answering, only, Request())[1] == answering
    only[1].healthy = True  # half of them: no panic
    assert LevelChooser(Random(1)).narrow(answering, only, Request())[1] == only[:2]


def test_no_panic_while_other_levels_can_carry_everything() -> None:
    levels = fleet(4, 4)
    for instance in levels[0][1:]:
        instance.healthy = False
    chooser = LevelChooser(Random(1))
    for _ in range(100):
        label, found = chooser.narrow(flat(levels), flat(levels), Request())
        assert list(found) == (levels[0][:1] if label == FIRST else levels[1])


def test_a_full_level_spills_above_80_percent_and_until_below_70() -> None:
    levels = fleet(2, 2, capacity=50)
    chooser = LevelChooser(Random(1))
    for load, label in ((80, FIRST), (81, SECOND), (75, SECOND), (70, SECOND), (69, FIRST), (80, FIRST)):
        levels[0][0].load, levels[0][1].load = 50, load - 50
        assert drawn(chooser, flat(levels), 3) == {label: 3}


def test_when_all_are_full_the_drawn_level_keeps_it_and_a_level_with_nobody_is_passed_over() -> None:
    levels = fleet(1, 1, 1, capacity=10)
    for level, load in zip(levels, (9, 9, 0), strict=True):
        level[0].load = load
    chooser = LevelChooser(Random(1))
    assert drawn(chooser, flat(levels), 3) == {THIRD: 3}
    levels[2][0].load = 9
    assert drawn(chooser, flat(levels), 3) == {FIRST: 3}
    levels[2][0].load, levels[1][0].healthy = 0, False
    assert drawn(chooser, flat(levels), 3) == {THIRD: 3}
    assert "spilling: ['priority 1'" in repr(chooser)


def test_without_limits_no_level_is_ever_full() -> None:
    levels = fleet(1, 1)
    levels[0][0].load = 10_000
    assert drawn(LevelChooser(Random(1)), flat(levels), 3) == {FIRST: 3}


@pytest.mark.parametrize(("point", "label"), [(0.0, FIRST), (69.9, FIRST), (70.0, SECOND), (99.99, SECOND)])
def test_a_point_of_its_own_decides_for_a_session_whatever_was_drawn_before(point: float, label: str) -> None:
    levels = fleet(4, 4)
    for instance in levels[0][:2]:
        instance.healthy = False
    for seed in range(5):
        chooser = LevelChooser(Random(seed))
        drawn(chooser, flat(levels), seed)
        assert chooser.narrow(well(flat(levels)), flat(levels), Request(), point=point)[0] == label


def regional() -> tuple[LevelChooser, list[Instance], Distances]:
    regions = ("us-east-1", "us-east-1", "eu-west-1", "eu-west-1", "ap-southeast-1", "ap-southeast-1")
    distances = Distances()
    everyone = [Instance(f"instance-{number}", region=region) for number, region in enumerate(regions)]
    return LevelChooser(Random(1), ByDistance(Options(distances=distances))), everyone, distances


def test_by_distance_each_client_has_its_own_first_level() -> None:
    chooser, everyone, _ = regional()
    for region in ("us-east-1", "eu-west-1", "ap-southeast-1", "eu-west-1"):
        assert drawn(chooser, everyone, 10, region) == {region: 10}


def test_by_distance_half_of_a_region_keeps_70_percent_and_the_next_nearest_gets_the_rest() -> None:
    chooser, everyone, _ = regional()
    everyone[2].healthy = False
    assert drawn(chooser, everyone, 100, "eu-west-1") == {"eu-west-1": 70, "us-east-1": 30}
    everyone[3].healthy = False
    assert drawn(chooser, everyone, 100, "eu-west-1") == {"us-east-1": 100}


def test_by_distance_a_new_measurement_changes_the_order() -> None:
    chooser, everyone, distances = regional()
    everyone[2].healthy = everyone[3].healthy = False
    assert drawn(chooser, everyone, 4, "eu-west-1") == {"us-east-1": 4}
    distances.measured("eu-west-1", "ap-southeast-1", 5.0)
    assert drawn(chooser, everyone, 4, "eu-west-1") == {"ap-southeast-1": 4}


def test_by_distance_only_the_configured_regions_take_part() -> None:
    _, everyone, _ = regional()
    chooser = LevelChooser(Random(1), ByDistance(Options(regions=("ap-southeast-1",))))
    assert drawn(chooser, everyone, 4, "eu-west-1") == {"ap-southeast-1": 4}
    assert chooser.narrow(everyone, everyone, Request(region="eu-west-1"))[1] == everyone[4:]


def test_clients_from_endless_regions_do_not_fill_the_memory() -> None:
    chooser, everyone, _ = regional()
    for number in range(3 * MOST_VIEWS):
        drawn(chooser, everyone, 1, f"made-up-{number}")
    assert len(chooser._views) <= MOST_VIEWS
    assert len(chooser._turns) <= MOST_VIEWS


def test_without_any_instance_there_is_no_level() -> None:
    assert LevelChooser(Random(1)).narrow([], [], Request()) == ("", ())


def test_the_same_stamp_keeps_what_was_worked_out() -> None:
    everyone = flat(fleet(2, 2))
    chooser = LevelChooser(Random(1))
    assert chooser.narrow(everyone, everyone, Request(), stamp=1)[0] == FIRST
    for instance in everyone[:2]:
        instance.healthy = False
    assert chooser.narrow(everyone, everyone, Request(), stamp=1)[0] == FIRST, "whoever changes one changes the stamp"
