"""A session's home at one gateway: a request goes there, waits for it, goes elsewhere once, or moves the session for good."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.config import parse
from cluster.messages import AgentView, Member, VersionShare
from deployments.balancing.backend import Lease
from deployments.balancing.lost_homes import REMEMBERED, LostHomes
from deployments.balancing.pool import Pool
from deployments.balancing.session_placement import SessionPlacement
from deployments.balancing.wait_queue import NoCapacity
from policies.base import Request
from policies.regions.distance import Distances
from policies.sessions.homes import HomeChange, SessionHome

KEYS = (b"k" * 16,)


class Agent:
    """One agent at one gateway; `limit` requests in flight per instance."""

    def __init__(self, count: int = 3, limit: int = 2) -> None:
        self.members = {
            f"r{n}": Member(f"instance-{n}", f"r{n}", "h", n, "v1", "local", 1, "healthy") for n in range(1, count + 1)
        }
        self.limit, self.share = limit, None
        self.pool = Pool("a", self.view(), Random(1), Distances(), KEYS, time.monotonic())

    def view(self) -> AgentView:
        block: dict[str, Any] = {
            "agent": "m:x",
            "limits": {"maxConnectionsPerInstance": self.limit},
            "loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}},
        }
        settings = parse({"agents": {"a": block}}, Path("/")).agents["a"]
        return AgentView(settings, True, tuple(self.members.values()), versions=self.share)

    def change(self, replica: str, **changes: Any) -> None:
        self.members[replica] = replace(self.members[replica], **changes)
        self.apply()

    def apply(self) -> None:
        self.pool.update(self.view(), Distances(), KEYS, time.monotonic())

    def ask(self, session: str | None = "s", tried: tuple[str, ...] = (), **more: Any) -> Lease:
        now = time.monotonic()
        return self.pool.choose(Request("a", session, now=now, **more), set(tried), now)

    def answered(self, session: str = "s", **more: Any) -> str:
        lease = self.ask(session, **more)
        lease.release(200, time.monotonic(), ok=True)
        return lease.backend.member.replica

    @property
    def sessions(self) -> SessionPlacement:
        assert self.pool.sessions is not None
        return self.pool.sessions

    def home(self, session: str = "s") -> str:
        home = self.sessions.homes.peek(session)
        assert home is not None
        return home.replica


def test_a_session_keeps_its_home_whatever_joins() -> None:
    agent = Agent()
    before = {f"s{n}": agent.answered(f"s{n}") for n in range(60)}
    for n in range(4, 9):
        agent.members[f"r{n}"] = Member(f"instance-{n}", f"r{n}", "h", n, "v1", "local", 1, "healthy")
    agent.apply()
    assert {session: agent.answered(session) for session in before} == before
    assert len(set(before.values())) == 3


def test_another_gateways_word_counts_before_a_hash_and_before_a_token() -> None:
    agent = Agent(5)
    hashed = agent.answered("probe")
    elsewhere = next(replica for replica in agent.members if replica != hashed)
    home = SessionHome(agent.members[elsewhere].id, elsewhere, "v1", placed_at=1.0)
    agent.sessions.homes.merge(HomeChange("told", home, 0), time.monotonic())
    assert agent.answered("told", pin=agent.members[hashed].id) == elsewhere
    assert agent.answered("token only", pin=agent.members[elsewhere].id) == elsewhere == agent.home("token only")


def test_a_request_waits_while_the_home_is_full_and_others_do_not() -> None:
    agent = Agent(limit=1)
    held = agent.ask()
    assert held.session_placed and not held.session_moved
    with pytest.raises(NoCapacity):
        agent.ask()
    assert agent.pool.lane_of(Request("a", "s")) == held.backend.member.id
    others = [agent.ask(None) for _ in range(2)]
    assert held.backend.member.replica not in {lease.backend.member.replica for lease in others}


async def test_waiting_for_a_home_holds_up_nobody_else_and_ends_with_it() -> None:
    agent = Agent(limit=1)
    held = agent.ask()
    others = [agent.ask(None), agent.ask(None)]
    queue = agent.pool.wait_queue
    now = time.monotonic()
    request = Request("a", "s", now=now)
    bound = asyncio.ensure_future(queue.wait(request, (), 5.0))
    free = asyncio.ensure_future(queue.wait(Request("a", now=now), (), 5.0))
    await asyncio.sleep(0)
    others[0].release(200, time.monotonic())
    waiting = await asyncio.wait_for(free, 5)
    assert waiting.future.result().backend is others[0].backend and not bound.done()
    held.release(200, time.monotonic())
    assert (await asyncio.wait_for(bound, 5)).future.result().backend is held.backend


async def test_a_request_that_waits_for_a_home_goes_on_when_that_leaves() -> None:
    agent = Agent(limit=1)
    held = agent.ask()
    bound = asyncio.ensure_future(agent.pool.wait_queue.wait(Request("a", "s", now=time.monotonic()), (), 5.0))
    await asyncio.sleep(0)
    agent.change(held.backend.member.replica, state="ejected")
    agent.pool.wait_queue.move(time.monotonic())
    lease = (await asyncio.wait_for(bound, 5)).future.result()
    assert lease.backend is not held.backend and lease.session_moved and lease.session_placed


def test_a_home_whose_attempt_failed_is_left_once_and_kept() -> None:
    agent = Agent()
    home = agent.answered()
    lease = agent.ask(tried=(agent.members[home].id,))
    assert lease.backend.member.replica != home and lease.session_moved and not lease.session_placed
    assert agent.home() == home == agent.answered()


@pytest.mark.parametrize(("mark", "cause"), [(Pool.mark_unreachable, "died"), (Pool.mark_stopping, "drained")])
def test_a_session_whose_home_accepts_nothing_moves_before_the_snapshot_states_so(mark: Any, cause: str) -> None:
    agent = Agent()
    home = agent.answered()
    mark(agent.pool, agent.ask().backend, time.monotonic())
    lease = agent.ask(tried=(agent.members[home].id,))
    moved = lease.backend.member.replica
    assert moved != home and lease.session_moved and lease.session_placed
    agent.members[home] = replace(agent.members[home], replica="restarted")
    agent.apply()
    assert agent.answered() == moved == agent.home()
    assert agent.sessions.take_moved(time.monotonic() + 60) == {cause: 1}


def placed_elsewhere(agent: Agent, replica: str, placed_at: float) -> None:
    """Another gateway has placed the session there."""
    agent.sessions.homes.merge(
        HomeChange("s", SessionHome("instance-9", replica, "v1", placed_at=placed_at), 0), time.monotonic()
    )


async def test_a_request_waits_for_the_snapshot_that_names_its_sessions_home() -> None:
    agent = Agent()
    placed_elsewhere(agent, "r9", time.time())
    waiting = asyncio.ensure_future(agent.pool.wait_queue.wait(Request("a", "s", now=time.monotonic()), (), 5.0))
    await asyncio.sleep(0)
    for state in (None, "starting", "healthy"):
        agent.pool.wait_queue.move(time.monotonic())
        assert not waiting.done() and agent.answered("other") in {"r1", "r2", "r3"}
        if state is not None:
            agent.members["r9"] = Member("instance-9", "r9", "h", 9, "v1", "local", 1, state)
        agent.apply()
    agent.pool.wait_queue.move(time.monotonic())
    lease = (await asyncio.wait_for(waiting, 5)).future.result()
    assert lease.backend.member.replica == "r9" and not lease.session_moved


def test_a_home_that_has_left_or_was_placed_long_ago_is_not_waited_for() -> None:
    agent = Agent()
    placed_elsewhere(agent, "r9", time.time() - 60)
    assert agent.answered() in {"r1", "r2", "r3"}
    other = Agent(9)
    other.members.pop("r9")
    other.apply()
    placed_elsewhere(other, "r9", time.time())
    assert other.ask().session_moved


@pytest.mark.parametrize("state", ["unhealthy", "ejected", "stopped"])
def test_a_session_whose_home_is_out_moves_for_good_and_once(state: str) -> None:
    agent = Agent()
    home = agent.answered()
    agent.change(home, state=state)
    lease = agent.ask()
    moved = lease.backend.member.replica
    assert moved != home and lease.session_moved and lease.session_placed
    agent.change(home, state="healthy")
    again = agent.ask()
    assert again.backend.member.replica == moved and not again.session_moved and not again.session_placed


def test_a_draining_home_keeps_its_sessions() -> None:
    agent = Agent()
    home = agent.answered()
    agent.change(home, state="draining")
    assert agent.answered() == home
    assert all(agent.answered(f"new{n}") != home for n in range(20))


def test_a_restarted_process_of_the_same_name_is_not_the_home() -> None:
    agent = Agent()
    home = agent.answered()
    member = agent.members.pop(home)
    agent.members["r9"] = replace(member, replica="r9")
    agent.apply()
    lease = agent.ask()
    assert lease.session_moved and agent.home() == lease.backend.member.replica != home


def test_two_gateways_that_lost_the_same_home_choose_the_same_new_one() -> None:
    one, other = Agent(6), Agent(6)
    homes = {f"s{n}": one.answered(f"s{n}") for n in range(40)}
    assert {session: other.answered(session) for session in homes} == homes
    for agent in (one, other):
        for _ in range(3):  # uneven loads, which only this gateway sees
            agent.pool.choose(Request("a", None, now=0.0), (), time.monotonic())
        agent.change("r2", state="ejected")
    assert {session: one.answered(session) for session in homes} == {session: other.answered(session) for session in homes}


def test_a_home_pins_the_version_through_a_rollout() -> None:
    agent = Agent()
    home = agent.answered()
    for n in (4, 5, 6):
        agent.members[f"r{n}"] = Member(f"instance-{n}", f"r{n}", "h", n, "v2", "local", 1, "healthy")
    agent.share = VersionShare("v1", "v2", 100.0)  # type: ignore[assignment]
    agent.apply()
    version = agent.pool.version_for("s", None)
    assert version == "v1" and agent.answered(version=version) == home
    assert agent.pool.version_for("new", None) == "v2"
    agent.share = VersionShare("v2")  # type: ignore[assignment]
    for replica in ("r1", "r2", "r3"):
        agent.members.pop(replica)
    agent.apply()
    assert agent.pool.version_for("s", None) == "v2" and agent.answered(version="v2") in {"r4", "r5", "r6"}


def test_a_session_that_the_instance_created_lives_there() -> None:
    agent = Agent()
    backend = next(iter(agent.pool.backends()))
    assert agent.sessions.learn("made-there", backend, time.monotonic())
    assert not agent.sessions.learn("made-there", backend, time.monotonic())
    assert agent.answered("made-there") == backend.member.replica


@pytest.mark.parametrize(
    ("states", "stays", "cause"),
    [
        (["draining", "stopped"], True, "drained"),
        (["draining"], False, "drained"),
        ([], False, "died"),
        (["unhealthy"], True, "unhealthy"),
        (["ejected"], True, "unresponsive"),
        (["ejected"], False, "died"),
    ],
)
def test_a_lost_home_is_counted_with_its_cause(states: list[str], stays: bool, cause: str) -> None:
    agent = Agent()
    home = agent.answered()
    for state in states:
        agent.change(home, state=state)
    if not stays:
        del agent.members[home]
        agent.apply()
    assert agent.answered() != home
    later = time.monotonic() + 60
    assert agent.sessions.take_moved(later) == {cause: 1} and agent.sessions.take_moved(later) == {}


def test_a_home_that_was_lost_before_this_gateway_started_has_an_unknown_cause() -> None:
    agent = Agent()
    agent.sessions.homes.merge(HomeChange("s", SessionHome("instance-9", "r9", "v1", placed_at=1.0), 0), time.monotonic())
    agent.answered()
    assert agent.sessions.take_moved(time.monotonic() + 60) == {"unknown": 1}


def test_a_new_session_a_full_home_and_a_retry_are_no_moves() -> None:
    agent = Agent()
    home = agent.answered()
    agent.ask(tried=(agent.members[home].id,)).release(200, time.monotonic(), ok=True)
    assert agent.answered() == home
    assert agent.sessions.take_moved(time.monotonic() + 60) == {}


def test_the_causes_of_instances_that_left_are_remembered_for_a_bounded_number() -> None:
    lost = LostHomes()
    for number in range(REMEMBERED + 1):
        lost.left(f"r{number}", "healthy")
    assert (lost.cause("r0", {}), lost.cause("r1", {})) == ("unknown", "died")
