"""Above 64 instances a gateway does not look at each for every request. What it promises is the same: the rules of a small
fleet are tried on a large one, and the two are compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import agent_from_block
from cluster.instance_state import InstanceState
from cluster.messages import AgentView, Member, VersionShare
from deployments.balancing import pool as pool_module
from deployments.balancing.backend import Lease
from deployments.balancing.pool import Pool
from deployments.balancing.wait_queue import NoCapacity
from policies import STRATEGIES
from policies.base import Request
from policies.errors import CircuitOpen, NoHealthyInstance
from policies.regions.distance import Distances

SIZE = 90
REGIONS = ("us", "eu", "ap")
STATES: tuple[InstanceState, ...] = ("healthy", "healthy", "unhealthy", "draining", "ejected", "starting")
each_strategy = pytest.mark.parametrize("strategy", list(STRATEGIES))


def pool(
    states: list[InstanceState] | None = None,
    *,
    strategy: str = "least-connections",
    share: VersionShare | None = None,
    affinity: bool = False,
    seed: int = 1,
    **blocks: Any,
) -> Pool:
    """Instances in three regions of priorities 1, 2 and 3; every fifth is of version v2."""
    block = {"agent": "m:x", "loadBalancing": {"strategy": strategy, "sessionAffinity": {"enabled": affinity}}, **blocks}
    healthy: InstanceState = "healthy"
    members = tuple(
        Member(f"instance-{n + 1}", f"r{n}", "127.0.0.1", 1, "v2" if n % 5 == 4 else "v1", REGIONS[n % 3], 1 + n % 3, state)
        for n, state in enumerate(states or [healthy] * SIZE)
    )
    view = AgentView(agent_from_block("a", block, Path("/")), affinity, members, versions=share)
    return Pool("a", view, Random(seed), Distances(), [b"1" * 32], 0.0)


def choose(made: Pool, now: float = 1.0, *tried: str, session: str | None = None) -> Lease:
    version = made.version_for(session, None)
    return made.choose(Request(agent="a", region="us", session=session, now=now, version=version), tried, now)


def id_of(lease: Lease) -> str:
    return lease.backend.member.id


@each_strategy
def test_capacity_is_exact_and_every_place_is_found(strategy: str) -> None:
    made = pool(strategy=strategy, limits={"maxConnectionsPerInstance": 2, "maxConnections": 10_000})
    taken = Counter(id_of(choose(made)) for _ in range(2 * SIZE))
    assert set(taken.values()) == {2}
    assert len(taken) == SIZE
    with pytest.raises(NoCapacity):
        choose(made)


@each_strategy
def test_the_limit_of_all_requests_together_is_exact(strategy: str) -> None:
    made = pool(strategy=strategy, limits={"maxConnections": 7})
    leases = [choose(made) for _ in range(7)]
    with pytest.raises(NoCapacity):
        choose(made)
    leases.pop().release(200, 2.0)
    choose(made, 2.0)
    with pytest.raises(NoCapacity):
        choose(made, 2.0)


@each_strategy
def test_one_that_was_tried_or_refused_a_connection_is_not_chosen(strategy: str) -> None:
    made = pool(strategy=strategy)
    suspect = next(iter(made.backends()))
    made.mark_unreachable(suspect, 1.0)
    tried = [f"instance-{n}" for n in range(2, SIZE)]
    for _ in range(5):
        lease = choose(made, 1.0, *tried)
        assert id_of(lease) == f"instance-{SIZE}"
        lease.release(200, 1.0)
    with pytest.raises(NoHealthyInstance):
        choose(made, 1.0, *tried, f"instance-{SIZE}")


@each_strategy
def test_an_instance_that_fails_its_checks_gets_nothing(strategy: str) -> None:
    states: list[InstanceState] = ["unhealthy" if n % 2 else "healthy" for n in range(SIZE)]
    made = pool(states, strategy=strategy)
    for _ in range(300):
        lease = choose(made)
        assert int(id_of(lease).rpartition("-")[2]) % 2 == 1
        lease.release(200, 1.0)


@each_strategy
def test_open_breakers_are_skipped_and_are_the_reason_when_all_are_open(strategy: str) -> None:
    made = pool(strategy=strategy, circuitBreaker={"failureThreshold": 1, "resetTimeout": "1h"})
    failed = set()
    for _ in range(SIZE):
        lease = choose(made)
        assert id_of(lease) not in failed
        failed.add(id_of(lease))
        lease.release(500, 1.0, ok=False)
    with pytest.raises(CircuitOpen):
        choose(made)


@each_strategy
def test_a_canary_gets_its_share_and_sessions_keep_home_and_version(strategy: str) -> None:
    made = pool(strategy=strategy, share=VersionShare("v1", "v2", 20.0), affinity=True)
    versions = Counter(choose(made).backend.member.version for _ in range(500))
    assert versions == {"v1": 400, "v2": 100}
    for session in ("ada", "grace", "linus"):
        homes = {id_of(choose(made, session=session)) for _ in range(5)}
        assert len(homes) == 1


@each_strategy
def test_a_version_without_a_healthy_instance_is_passed_over(strategy: str) -> None:
    states: list[InstanceState] = ["unhealthy" if n % 5 == 4 else "healthy" for n in range(SIZE)]
    made = pool(states, strategy=strategy, share=VersionShare("v1", "v2", 50.0))
    assert {choose(made).backend.member.version for _ in range(50)} == {"v1"}


def test_a_level_takes_everything_until_it_is_full_and_then_passes_some_on() -> None:
    made = pool(strategy="round-robin", limits={"maxConnectionsPerInstance": 10, "maxConnections": 10_000})
    regions = Counter(choose(made).backend.member.region for _ in range(240))
    assert regions == {"us": 240}  # 80 % of 30 instances with 10 places each
    later = Counter(choose(made).backend.member.region for _ in range(200))
    assert later["eu"] > 150
    assert later["ap"] == 0


def test_a_region_that_fails_by_halves_gives_up_a_part_of_its_traffic() -> None:
    states: list[InstanceState] = ["unhealthy" if n % 6 == 0 else "healthy" for n in range(SIZE)]  # half of "us"
    made = pool(states, strategy="round-robin", circuitBreaker={"enabled": False})
    regions = Counter(choose(made).backend.member.region for _ in range(100))
    assert regions == {"us": 70, "eu": 30}


def test_an_update_is_seen_at_once() -> None:
    made = pool()
    choose(made)
    states: list[InstanceState] = ["unhealthy" if n % 3 == 0 else "healthy" for n in range(SIZE)]
    made.update(pool(states).view, Distances(), [b"1" * 32], 2.0)
    assert {choose(made, 2.0).backend.member.region for _ in range(20)} == {"eu"}


@settings(max_examples=30)
@given(
    states=st.lists(
        st.sampled_from(["healthy", "healthy", "unhealthy", "draining", "ejected", "starting"]), min_size=3, max_size=20
    ),
    strategy=st.sampled_from(list(STRATEGIES)),
    canary=st.booleans(),
    affinity=st.booleans(),
    steps=st.lists(st.tuples(st.sampled_from(["send", "send", "send", "end", "fail"]), st.integers(0, 5)), max_size=60),
    seed=st.integers(0, 99),
)
def test_the_same_requests_are_answered_as_if_each_instance_was_looked_at(
    states: list[InstanceState],
    strategy: str,
    canary: bool,
    affinity: bool,
    steps: list[tuple[str, int]],
    seed: int,
) -> None:
    """Whether one can take a request, why none can, and that none takes too many: the same in both ways."""

    def run(large: int) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool_module, "LARGE", large)
            share = VersionShare("v1", "v2", 50.0) if canary else None
            made = pool(
                states, strategy=strategy, share=share, affinity=affinity, seed=seed,
                limits={"maxConnectionsPerInstance": 2, "maxConnections": 15}, circuitBreaker={"failureThreshold": 3},
            )  # fmt: skip
            now, leases, outcomes = 1.0, list[Lease](), list[str]()
            for step, number in steps:
                now += 0.2
                if step == "send":
                    try:
                        leases.append(lease := choose(made, now, session=f"s{number}" if affinity and number < 3 else None))
                    except (NoCapacity, NoHealthyInstance, CircuitOpen) as error:
                        outcomes.append(type(error).__name__)
                        continue
                    backend = lease.backend
                    assert backend.tally.active <= 2
                    assert backend.reachable
                    outcomes.append("sent")
                elif leases:
                    leases.pop(number % len(leases)).release(200 if step == "end" else 500, now, ok=step == "end")
            assert made.loads.total == sum(backend.instance.load for backend in made.backends())
            return outcomes

    small, large = run(10_000), run(0)
    if affinity or "fail" in {step for step, _ in steps}:
        return  # which instance is asked decides what follows; that none is wrong was asserted on the way
    assert small == large
