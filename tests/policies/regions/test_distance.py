"""Distances: what is configured, else measured, else on the map, else priority."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.regions.cloud_regions import COORDINATES
from policies.regions.distance import Distances, great_circle_km

regions = st.sampled_from(sorted(COORDINATES))


def order(distances: Distances, here: str, *names: str) -> list[str]:
    return [" ".join(place) for place in distances.order(here, dict.fromkeys(names, 1))]


def test_the_map_has_the_big_clouds() -> None:
    assert len(COORDINATES) >= 60
    for name, (latitude, longitude) in COORDINATES.items():
        assert name == name.lower()
        assert -60 < latitude < 70
        assert -180 <= longitude <= 180


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        ("us-east-1", "eu-west-1", 60, 85),
        ("us-east-1", "us-west-2", 45, 70),
        ("eu-west-1", "ap-southeast-1", 140, 190),
        ("us-east-1", "us-east4", 0, 1),
        ("westeurope", "europe-west4", 0, 5),
        ("sa-east-1", "ap-northeast-1", 230, 290),
    ],
)
def test_estimates_are_near_what_people_measure(one: str, other: str, least: float, most: float) -> None:
    ms = Distances().lookup(one, other)[0]
    assert ms is not None
    assert least <= ms <= most


@given(regions, regions)
def test_the_map_is_symmetric_and_nobody_is_farther_than_the_other_side_of_the_earth(one: str, other: str) -> None:
    there, back = great_circle_km(COORDINATES[one], COORDINATES[other]), great_circle_km(COORDINATES[other], COORDINATES[one])
    assert there == pytest.approx(back, abs=1e-3)
    assert 0 <= there <= 20_016


def test_configured_wins_over_measured_and_measured_over_the_map() -> None:
    distances = Distances({"a": {"b": 1.0}, "us-east-1": {"eu-west-1": 300.0}})
    distances.measured("eu-west-1", "us-east-1", 90.0)
    distances.measured("eu-west-1", "eu-central-1", 25.0)
    distances.measured("x", "b", 7.0)
    assert distances.lookup("eu-west-1", "us-east-1")[0] == 300.0
    assert distances.lookup("eu-central-1", "eu-west-1")[0] == 25.0
    assert (distances.lookup("b", "a")[0], distances.lookup("b", "x")[0], distances.lookup("a", "x")[0]) == (1.0, 7.0, None)


def test_it_says_where_a_distance_is_known_from() -> None:
    distances = Distances({"a": {"b": 1.0}})
    distances.measured("b", "x", 7.0)
    assert [distances.lookup("b", other) for other in "axy"] == [(1.0, "configured"), (7.0, "measured"), (None, None)]
    assert distances.lookup("eu-west-1", "us-east-1")[1] == "estimated"


def test_what_was_measured_here_can_be_taken_over_elsewhere() -> None:
    here, there = Distances(), Distances()
    here.measured("b", "a", 7.0)
    here.measured("a", "a", 0.2)
    for one, others in here.measurements().items():
        for other, ms in others.items():
            there.measured(one, other, ms)
    assert here.measurements() == there.measurements() == {"a": {"b": 7.0}}


def test_what_is_configured_each_way_is_kept_apart() -> None:
    distances = Distances({"a": {"b": 1.0}, "b": {"a": 2.0}})
    assert (distances.lookup("a", "b")[0], distances.lookup("b", "a")[0]) == (1.0, 2.0)


def test_the_next_region_is_the_nearest_on_the_map() -> None:
    names = ("us-east-1", "eu-west-1", "ap-southeast-1", "eu-central-1")
    assert order(Distances(), "eu-west-1", *names) == ["eu-west-1", "eu-central-1", "us-east-1", "ap-southeast-1"]


def test_a_region_is_nearest_to_itself_whatever_is_said() -> None:
    distances = Distances({"a": {"b": 0.0}})
    assert order(distances, "a", "b", "a") == ["a", "b"]
    assert distances.lookup("nowhere", "nowhere")[0] == 0.0


def test_measured_times_within_2_ms_are_equal_and_priority_decides() -> None:
    distances = Distances()
    for region, ms in (("b", 10.0), ("c", 11.9), ("d", 12.1), ("e", 40.0)):
        distances.measured("a", region, ms)
    assert distances.order("a", {"b": 3, "c": 1, "d": 1, "e": 1}) == [("c",), ("b",), ("d",), ("e",)]


def test_equally_near_and_equally_important_regions_share_a_place() -> None:
    distances = Distances()
    distances.measured("a", "b", 10.0)
    distances.measured("a", "c", 11.0)
    assert distances.order("a", {"c": 1, "b": 1, "a": 1}) == [("a",), ("b", "c")]


def test_regions_that_nothing_is_known_of_come_last_by_priority() -> None:
    priorities = {"mars": 2, "moon": 1, "eu-west-1": 9, "venus": 2}
    assert Distances().order("us-east-1", priorities) == [("eu-west-1",), ("moon",), ("mars", "venus")]


@given(st.dictionaries(regions | st.sampled_from(["mars", "moon"]), st.integers(1, 3)), regions | st.just("mars"))
def test_every_region_has_exactly_one_place_and_the_order_of_the_input_does_not_matter(
    priorities: dict[str, int], here: str
) -> None:
    places = Distances().order(here, priorities)
    assert sorted(region for place in places for region in place) == sorted(priorities)
    assert places == Distances().order(here, dict(reversed(priorities.items())))


def test_the_stamp_changes_only_with_news() -> None:
    distances = Distances()
    stamps = []
    for ms in (5.0, 5.0, 6.0):
        distances.measured("a", "b", ms)
        stamps.append(distances.stamp)
    assert stamps == [1, 1, 2]


def test_other_configured_distances_hold_at_once_and_measured_ones_are_kept() -> None:
    distances = Distances({"us": {"eu": 80}})
    distances.measured("us", "ap", 150)
    before = distances.stamp
    distances.configure({"us": {"eu": 90}})
    assert distances.stamp != before
    assert distances.lookup("us", "eu")[0] == 90 and distances.lookup("us", "ap")[0] == 150
