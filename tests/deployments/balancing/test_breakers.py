"""Breakers at the gateways: what counts as a failure, who is asked again, and what the other gateways hear."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from cluster.fleet.shared_breakers import SharedBreakers
from deployments.balancing.agents import AgentTable
from deployments.balancing.pool import Pool
from policies.base import Request
from policies.errors import CircuitOpen
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import member, snapshot

BREAKER = {"circuitBreaker": {"failureThreshold": 3, "resetTimeout": "10s"}}


def made(*, gateway: str = "g1", count: int = 2, **breaker: Any) -> AgentTable:
    routing = AgentTable(Random(1), gateway)
    blocks = {"circuitBreaker": {"failureThreshold": 3, "resetTimeout": "10s", **breaker}}
    routing.apply(snapshot(*(member(n) for n in range(1, count + 1)), blocks=blocks))
    return routing


def ask(pool: Pool, now: float, ok: bool | None, only: str = "") -> str:
    """One request whose answer says this of its instance."""
    tried = [backend.member.id for backend in pool.backends() if only and backend.member.id != only]
    lease = pool.choose(Request(agent="a", now=now), tried, now)
    lease.release(200 if ok else 500, now, ok)
    return lease.backend.member.id


def fail(pool: Pool, name: str, times: int, now: float) -> None:
    for _ in range(times):
        ask(pool, now, ok=False, only=name)


def test_an_instance_that_fails_in_a_row_gets_nothing_until_its_time_and_then_one_probe() -> None:
    pool = made().pool("a")
    fail(pool, "instance-1", 3, 1.0)
    assert {ask(pool, 2.0, ok=True) for _ in range(20)} == {"instance-2"}
    held = [pool.choose(Request(agent="a", now=11.5), (), 11.5) for _ in range(20)]
    probes = [lease for lease in held if lease.backend.member.id == "instance-1"]
    assert len(probes) == 1
    for lease in held:
        lease.release(200, 11.6, ok=True)
    assert {ask(pool, 12.0, ok=True) for _ in range(20)} == {"instance-1", "instance-2"}


def test_successes_between_failures_refusals_and_clients_that_left_never_open_it() -> None:
    pool = made().pool("a")
    for _ in range(10):
        fail(pool, "instance-1", 2, 1.0)
        ask(pool, 1.0, ok=None, only="instance-1")
        ask(pool, 1.0, ok=True, only="instance-1")
    assert "instance-1" in {ask(pool, 2.0, ok=True) for _ in range(20)}


def test_when_all_are_open_the_error_says_so_and_when_to_come_again() -> None:
    pool = made().pool("a")
    for name in ("instance-1", "instance-2"):
        fail(pool, name, 3, 1.0)
    assert not pool.ready
    with pytest.raises(CircuitOpen) as refused:
        ask(pool, 4.0, ok=True)
    assert refused.value.retry_after_s == pytest.approx(7.0)


def test_an_abandoned_probe_makes_room_for_the_next_one() -> None:
    pool = made(count=1).pool("a")
    fail(pool, "instance-1", 3, 1.0)
    ask(pool, 11.5, ok=None)
    assert ask(pool, 11.6, ok=True) == "instance-1"
    assert pool.ready


def test_calls_that_have_not_begun_to_answer_in_time_open_it_while_they_still_run() -> None:
    routing = made(timeout="2s")
    pool = routing.pool("a")
    held = [pool.choose(Request(agent="a", now=0.0), ["instance-2"], 0.0) for _ in range(3)]
    routing.tick(1.9)
    assert pool.ready and "instance-1" in {ask(pool, 1.95, ok=True) for _ in range(20)}
    routing.tick(2.0)
    assert {ask(pool, 2.1, ok=True) for _ in range(20)} == {"instance-2"}
    for lease in held:
        lease.release(200, 3.0, ok=True)  # too late: they have been judged
    assert {ask(pool, 3.1, ok=True) for _ in range(20)} == {"instance-2"}


def test_an_answer_that_has_begun_is_in_time_however_long_it_takes() -> None:
    routing = made(timeout="2s")
    pool = routing.pool("a")
    held = [pool.choose(Request(agent="a", now=0.0), ["instance-2"], 0.0) for _ in range(5)]
    for lease in held:
        lease.answered(1.0, None)
    routing.tick(100.0)
    assert "instance-1" in {ask(pool, 100.0, ok=True) for _ in range(20)}


def test_switched_off_nothing_opens_and_switched_off_while_open_it_is_forgotten() -> None:
    routing = made()
    pool = routing.pool("a")
    fail(pool, "instance-1", 3, 1.0)
    off = {"circuitBreaker": {"enabled": False}}
    routing.apply(snapshot(member(1), member(2), version="2", blocks=off))
    assert {ask(pool, 2.0, ok=True) for _ in range(20)} == {"instance-1", "instance-2"}
    fail(pool, "instance-1", 20, 3.0)
    assert {ask(pool, 4.0, ok=True) for _ in range(20)} == {"instance-1", "instance-2"}


def test_a_new_process_under_the_old_name_starts_with_a_closed_one() -> None:
    routing = made()
    fail(routing.pool("a"), "instance-1", 3, 1.0)
    routing.apply(snapshot(member(1, replica="another"), member(2), version="2"))
    assert {ask(routing.pool("a"), 2.0, ok=True) for _ in range(20)} == {"instance-1", "instance-2"}


def report(gateway: AgentTable, shared: SharedBreakers, now: float) -> None:
    """Deliver the gateway's breaker changes to the Controller."""
    shared.observe(gateway.gateway, gateway.pool("a").breakers.take_updates(now), now)


def test_one_gateways_trip_reaches_the_others_through_the_controller_and_so_does_its_recovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("deployments.balancing.agents.time.monotonic", lambda: clock[0])
    one, other, shared = made(gateway="g1"), made(gateway="g2"), SharedBreakers()

    def push(version: str) -> None:
        for routing in (one, other):
            made_of = snapshot(member(1), member(2), version=version, blocks=BREAKER, circuits=shared.reports(clock[0]))
            routing.apply(made_of)

    fail(one.pool("a"), "instance-1", 3, clock[0])
    assert one.pool("a").breakers.has_updates
    report(one, shared, clock[0])
    assert shared.state("r1", clock[0]) == "open"
    push("x.2")
    assert {ask(other.pool("a"), clock[0], ok=True) for _ in range(20)} == {"instance-2"}
    clock[0] = 110.5  # the one that tripped it probes first
    assert shared.state("r1", clock[0]) == "half-open"
    assert "instance-1" not in {ask(other.pool("a"), clock[0], ok=True) for _ in range(20)}
    assert "instance-1" in {ask(one.pool("a"), clock[0], ok=True) for _ in range(20)}
    report(one, shared, clock[0])
    push("x.3")
    assert shared.state("r1", clock[0]) == "closed"
    assert "instance-1" in {ask(other.pool("a"), clock[0], ok=True) for _ in range(20)}


def test_a_restarted_controller_receives_every_open_breaker_again() -> None:
    routing = made()
    fail(routing.pool("a"), "instance-1", 3, 1.0)
    assert routing.pool("a").breakers.take_updates(1.0)
    assert not routing.pool("a").breakers.has_updates
    routing.apply(snapshot(member(1), member(2), version="another.1", blocks=BREAKER))
    assert list(routing.pool("a").breakers.take_updates(1.0)) == ["r1"]


class TestOverRealSockets:
    async def test_an_instance_that_answers_errors_is_out_of_service_until_it_recovers(self, plane: DataPlane) -> None:
        broken: set[str] = set()
        agent = Agent("a")

        @agent.on_message
        async def handle(message: str, request: Any) -> str:
            if request.instance in broken:
                raise RuntimeError("broken")
            return "ok"

        plane.blocks["a"] = {"circuitBreaker": {"failureThreshold": 3, "resetTimeout": "2s"}}
        await plane.add(agent, count=3)
        broken.add("instance-2")
        statuses = [await self.ask(plane) for _ in range(30)]
        assert statuses.count(("instance-2", 500)) == 3
        broken.clear()

        async def until_it_is_asked_again() -> None:
            while (await self.ask(plane))[0] != "instance-2":
                await asyncio.sleep(0.02)

        await asyncio.wait_for(until_it_is_asked_again(), 20)
        assert plane.active() == 0

    async def test_all_open_is_503_with_retry_after_and_the_health_page_says_it(self, plane: DataPlane) -> None:
        agent = Agent("a")

        @agent.on_message
        async def handle(message: str) -> str:
            raise RuntimeError("broken")

        plane.blocks["a"] = {"circuitBreaker": {"failureThreshold": 2, "resetTimeout": "30s"}}
        await plane.add(agent, count=2)
        for _ in range(4):
            assert (await self.ask(plane))[1] == 500
        async with plane.client.post("/agents/a/messages", json={"message": "x"}) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (503, "circuit_open")
            assert 1 <= int(response.headers["retry-after"]) <= 30
        async with plane.client.get("/-/healthz") as response:
            assert response.status == 503

    @staticmethod
    async def ask(plane: DataPlane) -> tuple[str, int]:
        async with plane.client.post("/agents/a/messages", json={"message": "x"}) as response:
            return response.headers["x-swiftclaw-instance"], response.status
