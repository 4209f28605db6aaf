"""One gateway's view: counts that always come back, weights, levels, and what is told to the Controller."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.instance_state import InstanceState
from cluster.messages import AgentView, Member, Snapshot
from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import LoadReport
from deployments.balancing.pool import Pool
from policies.base import Request
from policies.errors import NoHealthyInstance, UnknownAgent
from tests.deployments.helpers import member, snapshot


def routing(*members: Member, **balancing: Any) -> AgentTable:
    made = AgentTable(Random(1))
    made.apply(snapshot(*members, **balancing))
    return made


def shares(pool: Pool, count: int, region: str = "us", begin: float = 0.0, every: float = 1.0) -> Counter[str]:
    """Who is chosen, each request ending before the next begins."""
    counted: Counter[str] = Counter()
    for number in range(count):
        now = begin + number * every
        lease = pool.choose(Request(agent="a", region=region, now=now), (), now)
        counted[lease.backend.member.id] += 1
        lease.release(200, now + every / 2)
    return counted


def test_an_agent_outside_the_snapshot_is_unknown_and_before_the_first_snapshot_the_gateway_is_starting() -> None:
    with pytest.raises(NoHealthyInstance, match="starting"):
        AgentTable().pool("a")
    with pytest.raises(UnknownAgent):
        routing(member(1)).pool("b")


def test_a_lease_is_released_once_however_often_it_is_asked_to() -> None:
    pool = routing(member(1)).pool("a")
    one, other = (pool.choose(Request(now=0.0), (), 0.0) for _ in range(2))
    one.release(200, 1.0)
    one.release(502, 2.0)
    assert one.backend.tally.active == 1 and one.backend.instance.load == 1
    other.release(None, 3.0)
    assert one.backend.tally.active == 0 and one.backend.tally.codes == {200: 1}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_whatever_instances_report_the_load_is_never_below_what_is_in_flight_here_and_ends_at_what_they_said(
    steps: list[tuple[bool, int]],
) -> None:
    pool = routing(member(1)).pool("a")
    held: list[Any] = []
    for begin, reported in steps:
        if begin or not held:
            held.append(pool.choose(Request(now=0.0), (), 0.0))
        else:
            lease = held.pop()
            lease.answered(0.1, LoadReport(reported, 0))
            lease.release(200, 0.2)
        backend = next(iter(pool.backends()))
        assert backend.tally.active == len(held) <= backend.instance.load
    for lease in held:
        lease.release(None, 1.0)
    assert next(iter(pool.backends())).tally.active == 0


def test_a_replaced_process_starts_with_no_count_and_the_old_ones_lease_ends_on_the_old_one() -> None:
    agents = routing(member(1, replica="old"))
    lease = agents.pool("a").choose(Request(now=0.0), (), 0.0)
    removed = agents.apply(snapshot(member(1, replica="new"), version="2"))
    fresh = next(iter(agents.pool("a").backends()))
    assert removed == [lease.backend] and fresh is not lease.backend
    assert (fresh.tally.active, lease.backend.tally.active) == (0, 1)
    lease.release(502, 1.0)
    assert lease.backend.tally.active == 0 and lease.backend.tally.codes == {502: 1}


def test_weights_are_shares_and_an_unnamed_instance_gets_the_mean() -> None:
    members = [member(n) for n in range(1, 5)]
    pool = routing(*members, weighted={"instance-1": 50, "instance-2": 30, "instance-3": 10}).pool("a")
    assert shares(pool, 120) == {"instance-1": 50, "instance-2": 30, "instance-3": 10, "instance-4": 30}


def test_a_changed_strategy_and_changed_weights_take_effect_with_the_next_request_and_keep_counts() -> None:
    members = [member(n) for n in range(1, 4)]
    known = routing(*members)
    busy = known.pool("a").choose(Request(now=0.0), (), 0.0)
    known.apply(snapshot(*members, version="2", strategy="least-connections"))
    counted = shares(known.pool("a"), 30)
    assert busy.backend.member.id not in counted, "it still carries one, the others none"
    known.apply(snapshot(*members, version="3", weighted={"instance-1": 1, "instance-2": 0, "instance-3": 0}))
    assert shares(known.pool("a"), 30) == {"instance-1": 30}


def test_half_of_the_first_level_unhealthy_keeps_70_percent_there_and_all_of_it_none() -> None:
    def pool(*states: InstanceState) -> Pool:
        first = [member(n, "eu", state) for n, state in enumerate(states, 1)]
        return routing(*first, member(8, "us", priority=2), member(9, "us", priority=2)).pool("a")

    def eu(pool: Pool) -> int:
        return sum(count for name, count in shares(pool, 1000).items() if int(name.rpartition("-")[2]) < 8)

    assert eu(pool("healthy", "healthy", "healthy", "healthy")) == 1000
    assert abs(eu(pool("healthy", "healthy", "unhealthy", "unhealthy")) - 700) <= 1
    assert eu(pool("unhealthy", "unhealthy", "unhealthy", "unhealthy")) == 0


@pytest.mark.parametrize("asker", ["eu", "us"])
def test_geographic_answers_from_the_clients_region_and_then_from_the_next_nearest(asker: str) -> None:
    members = [member(1, "us"), member(2, "eu"), member(3, "ap")]
    known = AgentTable(Random(1))

    def apply(version: str, eu: InstanceState) -> Pool:
        made = snapshot(members[0], member(2, "eu", eu), members[2], version=version, strategy="geographic")
        settings = made.agents["a"].settings
        distances = {"eu": {"us": 80.0, "ap": 160.0}, "us": {"eu": 80.0, "ap": 200.0}, "ap": {"eu": 160.0, "us": 200.0}}
        known.apply(
            Snapshot(version, "k", made.http, {"a": AgentView(settings, False, made.agents["a"].members)},
                     made.session_keys, distances_ms=distances)
        )  # fmt: skip
        return known.pool("a")

    home = {"eu": "instance-2", "us": "instance-1"}[asker]
    assert shares(apply("1", "healthy"), 50, asker) == {home: 50}
    assert shares(apply("2", "unhealthy"), 50, asker) == {"instance-1": 50}


def test_without_a_healthy_instance_requests_are_refused_at_once_and_no_level_panics() -> None:
    pool = routing(member(1, state="unhealthy"), member(2, state="ejected")).pool("a")
    with pytest.raises(NoHealthyInstance) as refused:
        pool.choose(Request(now=0.0), (), 0.0)
    assert refused.value.retry_after_s


def test_a_panic_uses_those_whose_checks_fail_and_never_those_that_do_not_answer() -> None:
    pool = routing(member(1), member(2, state="unhealthy"), member(3, state="ejected"), member(4, state="unhealthy")).pool("a")
    assert set(shares(pool, 30)) == {"instance-1", "instance-2", "instance-4"}


def test_slow_start_holds_a_newcomer_back_and_weights_grow_with_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.balancing.agents.time.time", lambda: 1000.0)
    young = Member("instance-2", "r2", "127.0.0.1", 1, "v1", "us", 1, "healthy", started_at=997.0)
    pool = routing(member(1), young, slowStart="30s").pool("a")
    assert shares(pool, 110, every=0.0) == {"instance-1": 100, "instance-2": 10}, "3 s of 30"
    assert shares(pool, 150, begin=12.0, every=0.0) == {"instance-1": 100, "instance-2": 50}, "15 s of 30"


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_makes_no_instance_young_or_old(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    clock = [1000.0]
    monkeypatch.setattr("deployments.balancing.backend.time.time", lambda: clock[0])
    young = Member("instance-2", "r2", "127.0.0.1", 1, "v1", "us", 1, "healthy", started_at=997.0)
    pool = routing(member(1), young, slowStart="30s").pool("a")
    shares(pool, 1)
    clock[0] += step_s
    assert shares(pool, 110, begin=1.0, every=0.0) == {"instance-1": 97, "instance-2": 13}, "4 s of 30"
