"""Moves of sessions: confirmed after a while, withdrawn when another gateway's home prevails, counted once in the cluster."""

from __future__ import annotations

from random import Random

from policies.sessions.homes import SessionHome, SessionHomes
from policies.sessions.moved import CONFIRM_S, MovedSessions

LOST = SessionHome("instance-1", "r1", "v1", placed_at=10.0)


def test_a_move_is_taken_once_after_it_was_confirmed() -> None:
    moved = MovedSessions()
    moved.add("s", "died", 0.0)
    moved.add("t", "drained", 0.5)
    assert moved.take(CONFIRM_S - 0.1) == {}
    assert moved.take(CONFIRM_S) == {"died": 1} and moved.take(CONFIRM_S) == {}
    assert moved.take() == {"drained": 1}, "the gateway stops: nothing is left to wait for"


def test_a_withdrawn_move_is_not_counted() -> None:
    moved = MovedSessions()
    moved.add("s", "died", 0.0)
    moved.withdraw("s")
    moved.withdraw("never moved")
    assert moved.take() == {}


def test_a_session_that_moves_twice_at_once_is_two_moves() -> None:
    moved = MovedSessions()
    moved.add("s", "died", 0.0)
    moved.add("s", "died", 0.1)
    assert repr(moved) == "<MovedSessions: 1 confirmed, 1 made>"
    assert moved.take() == {"died": 2}


def test_of_gateways_that_move_a_session_in_the_same_moment_one_counts_it() -> None:
    rng = Random(7)
    for count in (1, 2, 3, 4):
        gateways = [SessionHomes() for _ in range(count)]
        for gateway in gateways:
            gateway.place("s", LOST, 0.0)
            gateway.changes(0.0)
        for number, gateway in enumerate(gateways):
            home = SessionHome(f"instance-{number + 2}", f"r{number + 2}", "v1", 1, placed_at=20.0 + rng.random())
            gateway.place("s", home, 1.0)
            gateway.moved.add("s", "died", 1.0)
        changes = [gateway.changes(1.1) for gateway in gateways]
        order = [(here, there) for here in range(count) for there in range(count) if here != there]
        rng.shuffle(order)
        for here, there in order:
            for change in changes[here]:
                gateways[there].merge(change, 1.2)
        assert sum(gateway.moved.take(5.0).get("died", 0) for gateway in gateways) == 1
        assert len({gateway.peek("s") for gateway in gateways}) == 1


def test_a_move_stays_counted_when_the_session_moves_on_at_another_gateway() -> None:
    here, there = SessionHomes(), SessionHomes()
    here.place("s", SessionHome("instance-2", "r2", "v1", 1, 20.0), 0.0)
    here.moved.add("s", "died", 0.0)
    there.place("s", SessionHome("instance-3", "r3", "v1", 2, 21.0), 0.1)
    there.moved.add("s", "died", 0.1)
    for change in there.changes(0.2):
        here.merge(change, 0.2)
    assert (here.moved.take(), there.moved.take()) == ({"died": 1}, {"died": 1})
