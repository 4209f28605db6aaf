"""Affinity: gateways agree without talking, and only the sessions of a lost instance move."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Instance
from policies.sessions.affinity import Rendezvous, hash_of, point_of

SESSIONS = [f"session-{number}" for number in range(1000)]


def fleet(size: int) -> list[Instance]:
    return [Instance(f"instance-{number}") for number in range(1, size + 1)]


def homes(instances: list[Instance], sessions: list[str] = SESSIONS, agent: str = "agent") -> dict[str, str]:
    hashing = Rendezvous()
    return {session: chosen.id for session in sessions if (chosen := hashing.pick(agent, session, instances)) is not None}


@pytest.mark.parametrize("size", range(2, 65))
def test_losing_one_of_n_moves_exactly_its_own_sessions(size: int) -> None:
    instances = fleet(size)
    sessions = SESSIONS[:200]
    before = homes(instances, sessions)
    lost = instances[size // 2]
    after = homes([instance for instance in instances if instance is not lost], sessions)
    assert {session for session in sessions if before[session] != after[session]} == {
        session for session in sessions if before[session] == lost.id
    }


def test_a_new_one_takes_only_its_own_share_of_new_sessions() -> None:
    before, after = homes(fleet(8)), homes(fleet(9))
    moved = {session for session in SESSIONS if before[session] != after[session]}
    assert {after[session] for session in moved} == {"instance-9"}
    assert 70 <= len(moved) <= 150


@pytest.mark.no_cover  # much work of code that the others run too
@given(st.integers(1, 20), st.text(max_size=20), st.text(max_size=20), st.randoms())
def test_two_gateways_agree_whatever_the_order_of_their_lists(size: int, agent: str, session: str, shuffler: Random) -> None:
    instances = fleet(size)
    shuffled = fleet(size)
    shuffler.shuffle(shuffled)
    one, other = Rendezvous(), Rendezvous()
    other.pick("warm", "up", shuffled)
    first, second = one.pick(agent, session, instances), other.pick(agent, session, shuffled)
    assert first is not None
    assert second is not None
    assert first.id == second.id


@pytest.mark.parametrize("agent", ["agent", "support", "billing"])
def test_a_thousand_sessions_are_spread_evenly_over_eight_instances(agent: str) -> None:
    counts = Counter(homes(fleet(8), agent=agent).values())
    assert len(counts) == 8
    assert max(counts.values()) <= 1.25 * 125 + 1


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_loads_play_no_part_because_gateways_see_different_ones(loads: list[int]) -> None:
    instances = fleet(4)
    before = homes(instances, SESSIONS[:20])
    for instance, load in zip(instances, loads, strict=True):
        instance.load = load
    assert homes(instances, SESSIONS[:20]) == before


def test_weights_are_shares_of_sessions_and_none_is_none() -> None:
    instances = fleet(4)
    for instance, weight in zip(instances, (0.0, 1.0, 2.0, 5.0), strict=True):
        instance.weight = weight
    sessions = [f"s{number}" for number in range(8000)]
    counts = Counter(homes(instances, sessions).values())
    assert [counts[f"instance-{number}"] / 1000 for number in (1, 2, 3, 4)] == pytest.approx([0, 1, 2, 5], rel=0.1)
    assert Rendezvous().pick("agent", "s", instances[:1]) is None
    assert Rendezvous().pick("agent", "s", []) is None


def test_raising_a_weight_moves_sessions_only_to_it() -> None:
    instances = fleet(5)
    before = homes(instances)
    instances[0].weight = 2.0
    after = homes(instances)
    assert {after[session] for session in SESSIONS if before[session] != after[session]} == {"instance-1"}


def test_agents_have_orders_of_their_own() -> None:
    same = sum(one == other for one, other in zip(homes(fleet(8)).values(), homes(fleet(8), agent="b").values(), strict=True))
    assert 70 <= same <= 190


def test_hashes_are_the_same_in_every_process() -> None:
    assert hash_of("agent", "session") == 9561045580565034851
    assert hash_of("ab", "c") != hash_of("a", "bc")
    assert hash_of("\ud800") != hash_of("?")


def test_points_are_spread_from_0_to_100() -> None:
    below_70 = sum(point_of("agent", session) < 70 for session in SESSIONS)
    assert 650 <= below_70 <= 750
    assert all(0 <= point_of("agent", session) < 100 for session in SESSIONS)


def test_hashes_of_names_are_kept_for_a_limited_number_and_the_choice_does_not_depend_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = homes(fleet(5))
    monkeypatch.setattr("policies.sessions.affinity.MOST_NAMES", 2)
    assert homes(fleet(5)) == before
