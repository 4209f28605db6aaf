"""An agent without an instance: requests wait for the one that is starting, or are refused when none will come."""

from __future__ import annotations

import asyncio
from typing import Any

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import until

agent = Agent("a")


@agent.on_message
async def answer(request: Any) -> str:
    return "hello"


async def ask(plane: DataPlane) -> tuple[int, str]:
    async with plane.client.post("/agents/a/messages", json={"message": "x"}) as response:
        body = await response.json()
        return response.status, body["reply"] if response.status == 200 else body["error"]["type"]


async def health(plane: DataPlane) -> int:
    async with plane.client.get("/-/healthz") as response:
        return response.status


def at_zero(plane: DataPlane, **limits: Any) -> None:
    plane.blocks["a"] = {"limits": limits}
    plane.members["a"] = []
    plane.coming = {"a"}
    plane.announce()


async def test_requests_wait_for_the_first_instance_and_ask_for_it_at_once(plane: DataPlane) -> None:
    at_zero(plane, connectionTimeout="20s")
    assert not plane.reporter.is_urgent
    waiting = [asyncio.create_task(ask(plane)) for _ in range(3)]
    await until(lambda: len(plane.agents.pool("a").wait_queue) == 3)
    assert plane.reporter.is_urgent and plane.reporter.observation().queued == {"a": 3}
    await plane.add(agent)
    assert [await task for task in waiting] == [(200, "hello")] * 3


async def test_an_instance_that_is_starting_is_waited_for(plane: DataPlane) -> None:
    plane.coming = {"a"}
    (name,) = await plane.add(agent)
    plane.mark("a", name, "starting")
    waiting = asyncio.create_task(ask(plane))
    await until(lambda: len(plane.agents.pool("a").wait_queue) == 1)
    assert await health(plane) == 200
    plane.mark("a", name, "healthy")
    assert await waiting == (200, "hello")


async def test_they_wait_no_longer_than_the_connection_timeout_or_hold_when_none(plane: DataPlane) -> None:
    at_zero(plane, connectionTimeout="100ms")
    assert await ask(plane) == (503, "overloaded")
    at_zero(plane, connectionTimeout="60s", holdWhenNone="100ms")
    assert await asyncio.wait_for(ask(plane), 10) == (503, "overloaded")


async def test_without_holding_or_when_nothing_can_come_they_are_refused_at_once(plane: DataPlane) -> None:
    at_zero(plane, connectionTimeout="60s", holdWhenNone=0)
    assert await asyncio.wait_for(ask(plane), 10) == (503, "no_healthy_instance")
    at_zero(plane, connectionTimeout="60s")
    plane.coming.clear()
    plane.announce()
    async with plane.client.post("/agents/a/messages", json={"message": "x"}) as response:
        error = (await response.json())["error"]
    assert (error["type"], error["message"]) == ("no_healthy_instance", "a has no instance; none is starting")


async def test_when_all_instances_fail_the_reason_comes_at_once_although_others_are_starting(plane: DataPlane) -> None:
    (name,) = await plane.add(agent)
    plane.mark("a", name, "unhealthy")
    plane.starting = {"a"}
    plane.announce()
    assert await asyncio.wait_for(ask(plane), 10) == (503, "no_healthy_instance")
    plane.mark("a", name, "starting")
    assert await asyncio.wait_for(ask(plane), 10) == (503, "no_healthy_instance")
    plane.blocks["a"] = {"limits": {"holdWhenNone": "60s"}}
    plane.announce()
    waiting = asyncio.create_task(ask(plane))
    await until(lambda: len(plane.agents.pool("a").wait_queue) == 1)
    plane.mark("a", name, "healthy")
    assert await waiting == (200, "hello")


async def test_those_that_wait_are_refused_when_the_instance_will_not_come_after_all(plane: DataPlane) -> None:
    at_zero(plane, connectionTimeout="60s")
    waiting = asyncio.create_task(ask(plane))
    await until(lambda: len(plane.agents.pool("a").wait_queue) == 1)
    plane.coming.clear()
    plane.announce()
    assert await asyncio.wait_for(waiting, 10) == (503, "no_healthy_instance")


async def test_an_agent_at_zero_by_design_leaves_the_gateway_ready_and_one_that_failed_does_not(plane: DataPlane) -> None:
    at_zero(plane)
    assert await health(plane) == 200
    (name,) = await plane.add(agent)
    plane.mark("a", name, "draining")
    assert await health(plane) == 200
    plane.mark("a", name, "unhealthy")
    assert await health(plane) == 503
