"""Homes of sessions: bounded, expiring, and the same at every gateway whatever the order of what they report."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from policies.sessions.homes import HomeChange, SessionHome, SessionHomes

A = SessionHome("instance-1", "r1", "v1", placed_at=10.0)
B = SessionHome("instance-2", "r2", "v1", placed_at=11.0)

homes = st.builds(
    lambda number, moves, placed_at: SessionHome(f"instance-{number}", f"r{number}", "v1", moves, placed_at),
    st.integers(1, 4),
    st.integers(0, 3),
    st.floats(0, 5),
)


def test_a_home_is_kept_for_the_ttl_after_its_last_use() -> None:
    kept = SessionHomes(ttl_s=10)
    kept.place("s", A, 0)
    assert kept.get("s", 10) == A and kept.get("s", 20) == A
    assert kept.get("s", 30.1) is None and len(kept) == 0


def test_the_session_that_was_idle_longest_leaves_first() -> None:
    kept = SessionHomes(ttl_s=100, most=2)
    kept.place("a", A, 0)
    kept.place("b", A, 1)
    kept.get("a", 2)
    kept.place("c", A, 3)
    assert [kept.peek(name) for name in "abc"] == [A, None, A]


def test_what_is_placed_is_reported_once_and_by_every_bounded_report() -> None:
    kept = SessionHomes()
    for name in "abc":
        kept.place(name, A, 0)
    assert [change.session for change in kept.changes(1, most=2)] == ["a", "b"] and kept.has_changes
    assert kept.changes(1) == [HomeChange("c", A, 1)] and kept.changes(1) == [] and not kept.has_changes


def test_what_leaves_before_it_was_reported_is_not_reported() -> None:
    kept = SessionHomes(ttl_s=10, most=2)
    for name in "abc":
        kept.place(name, A, 0)
    assert repr(kept) == "<SessionHomes: 2 sessions, 2 to report>"
    kept.get("b", 5)
    kept.place("d", A, 11)
    assert [change.session for change in kept.changes(11)] == ["b", "d"] and len(kept) == 2


def test_a_merged_session_that_was_idle_longest_leaves_first() -> None:
    kept = SessionHomes(ttl_s=100)
    kept.place("a", A, 50)
    kept.merge(HomeChange("old", A, 40), 50)
    kept.merge(HomeChange("older", A, 45), 50)
    kept.merge(HomeChange("between", A, 10), 50)
    assert kept.get("older", 105.5) is None and len(kept) == 3
    assert kept.get("between", 141) is None, "found expired though it stands out of order"


def test_what_is_merged_is_not_reported_again() -> None:
    kept = SessionHomes()
    assert kept.merge(HomeChange("s", A, 0), 5) and kept.changes(6) == []


def test_use_is_reported_after_a_tenth_of_the_ttl_so_that_no_gateway_forgets() -> None:
    here, there = SessionHomes(ttl_s=100), SessionHomes(ttl_s=100)
    here.place("s", A, 0)
    for change in here.changes(0):
        there.merge(change, 0)
    for now in range(1, 500):
        here.get("s", now)
        for change in here.changes(now):
            there.merge(change, now)
    assert there.peek("s") == A
    there.get("s", 560)
    assert there.peek("s") == A


def test_a_session_that_was_answered_first_keeps_its_home_and_a_moved_one_its_new_one() -> None:
    kept = SessionHomes()
    kept.place("s", B, 0)
    assert kept.merge(HomeChange("s", A, 0), 0) and kept.peek("s") == A, "placed earlier"
    assert not kept.merge(HomeChange("s", B, 0), 0) and kept.peek("s") == A
    moved = B._replace(moves=1, placed_at=99.0)
    assert kept.merge(HomeChange("s", moved, 0), 0) and kept.peek("s") == moved


def test_what_expired_elsewhere_is_not_taken_over() -> None:
    kept = SessionHomes(ttl_s=10)
    assert not kept.merge(HomeChange("s", A, 11), 100) and len(kept) == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), homes), min_size=1, max_size=8), st.randoms())
def test_gateways_agree_whatever_the_order(reports: list[tuple[str, SessionHome]], random: Random) -> None:
    one, other = SessionHomes(), SessionHomes()
    for session, home in reports:
        one.merge(HomeChange(session, home, 0), 0)
    random.shuffle(reports)
    for session, home in reports + reports:
        other.merge(HomeChange(session, home, 0), 0)
    assert all(one.peek(session) == other.peek(session) for session in "ab")


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), homes), max_size=20))
def test_gateways_that_have_heard_everything_agree(placed: list[tuple[int, str, SessionHome]]) -> None:
    gateways = [SessionHomes() for _ in range(3)]
    for number, session, home in placed:
        gateways[number].place(session, home, 0)
    for _ in range(2):
        for gateway in gateways:
            for change in list(gateway.everything(0)):
                for other in gateways:
                    other.merge(change, 0)
    assert len({tuple(gateway.peek(session) for session in "abc") for gateway in gateways}) == 1


def test_a_gateway_that_starts_takes_over_everything() -> None:
    old, new = SessionHomes(ttl_s=100), SessionHomes(ttl_s=100)
    for number in range(50):
        old.place(f"s{number}", A, number)
    for change in old.everything(60):
        new.merge(change, 1000)
    assert len(new) == 50 and new.get("s0", 1039) == A
    assert new.get("s1", 1039.0) == A and new.get("s2", 1045) is None
