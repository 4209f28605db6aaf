"""Which instances may take a request, and why none can."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.config import agent_from_block
from cluster.instance_state import InstanceState
from cluster.messages import AgentView, Member
from deployments.balancing.pool import Pool
from deployments.balancing.wait_queue import NoCapacity
from policies.base import Request
from policies.errors import CircuitOpen, NoHealthyInstance
from policies.regions.distance import Distances


def pool(*states: InstanceState, **blocks: Any) -> Pool:
    """A pool of instances in these states."""
    settings = agent_from_block("a", {"agent": "tests:agent", **blocks}, Path("/"))
    members = tuple(
        Member(f"instance-{number}", f"r{number}", "127.0.0.1", 1, "v1", "local", 1, state)
        for number, state in enumerate(states, 1)
    )
    return Pool("a", AgentView(settings, False, members), Random(1), Distances(), [b"1" * 32], 0.0)


def choose(made: Pool, now: float = 1.0, *tried: str) -> Any:
    return made.choose(Request(agent="a", now=now), tried, now)


def test_no_healthy_instance_is_the_reason_when_none_is_in_service() -> None:
    with pytest.raises(NoHealthyInstance, match="no healthy instance of a is available"):
        choose(pool("unhealthy", "draining"))


def test_no_capacity_is_the_reason_while_an_instance_is_only_full() -> None:
    made = pool("healthy", "healthy", limits={"maxConnectionsPerInstance": 1})
    choose(made)
    assert made.may_have_capacity(1.0)
    choose(made)
    assert not made.may_have_capacity(1.0)
    with pytest.raises(NoCapacity):
        choose(made)


def test_open_breakers_are_the_reason_when_nothing_else_is_left_and_the_first_probe_is_the_time_to_retry() -> None:
    made = pool("healthy", "unhealthy", circuitBreaker={"failureThreshold": 1, "resetTimeout": "10s"})
    choose(made).release(500, 1.0, ok=False)
    with pytest.raises(CircuitOpen, match="the circuit breaker of every healthy instance of a is open") as refused:
        choose(made, 2.0)
    assert refused.value.retry_after_s == 9.0


def test_an_instance_that_was_tried_is_not_chosen_again() -> None:
    made = pool("healthy", "healthy")
    assert {choose(made, 1.0, "instance-1").backend.member.id for _ in range(5)} == {"instance-2"}
    with pytest.raises(NoHealthyInstance):
        choose(made, 1.0, "instance-1", "instance-2")


def test_an_instance_is_the_last_when_every_other_is_tried_suspect_or_out_of_service() -> None:
    made = pool("healthy", "healthy", "draining")
    first, second, _ = made.backends()
    assert not made.is_last(first, ())
    assert made.is_last(first, {"instance-2"})
    second.suspect_until = float("inf")
    assert made.is_last(first, ())


def test_without_a_ready_instance_waiting_requests_are_let_through_to_learn_the_reason() -> None:
    assert pool("unhealthy").may_have_capacity(1.0)


def test_repr_states_the_situation() -> None:
    made = pool("healthy", "unhealthy", "healthy")
    lease = choose(made)
    assert repr(made) == "<Pool of a: 2 of 3 instances healthy, 1 requests in flight from here, 0 waiting>"
    lease.release(200, 2.0)
    assert repr(made) == "<Pool of a: 2 of 3 instances healthy, 0 requests in flight from here, 0 waiting>"
    assert repr(made.wait_queue) == "<AgentWaitQueue of a: 0 of 1000 requests waiting>"
