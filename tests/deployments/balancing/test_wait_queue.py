"""Limits and the wait queue: an instance refuses above its limit; requests without capacity wait, first come, first served."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any

import aiohttp
import pytest

from cluster.instance_state import InstanceState
from cluster.messages import KEY_HEADER, LIMIT_HEADER, REFUSED_HEADER
from deployments.balancing.backend import Lease
from deployments.balancing.wait_queue import AgentWaitQueue, NoCapacity
from policies.base import Request
from policies.errors import Overloaded
from swiftclaw import Agent
from tests.deployments.conftest import KEY, DataPlane
from tests.deployments.helpers import until


class Gate:
    """An agent whose requests end when they are released; `order`: the messages in order of arrival."""

    def __init__(self) -> None:
        self.agent = Agent("a")
        self.order: list[str] = []
        self.running = 0
        self.most = 0
        self._go: dict[str, asyncio.Event] = {}

        @self.agent.on_message
        async def handle(message: str) -> str:
            self.order.append(message)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self._event(message).wait()
            finally:
                self.running -= 1
            return message

    def _event(self, message: str) -> asyncio.Event:
        return self._go.setdefault(message, asyncio.Event())

    def finish(self, *messages: str) -> None:
        for message in messages:
            self._event(message).set()

    async def begun(self, *messages: str) -> None:
        await until(lambda: set(messages) <= set(self.order))


async def ask(plane: DataPlane, message: str) -> tuple[int, str]:
    """(status, the reply or the error's type)."""
    async with plane.client.post("/agents/a/messages", json={"message": message}) as response:
        body = await response.json()
        if response.status == 503:
            assert int(response.headers["retry-after"]) >= 1
        return response.status, body["reply"] if response.status == 200 else body["error"]["type"]


def asking(plane: DataPlane, message: str) -> asyncio.Task[tuple[int, str]]:
    return asyncio.create_task(ask(plane, message))


async def start(plane: DataPlane, app: Any = None, *, count: int = 1, **limits: Any) -> Gate:
    plane.blocks["a"] = {"limits": {"maxConnectionsPerInstance": 1, "connectionTimeout": "20s", **limits}}
    gate = Gate()
    if app is not None:
        gate.agent.mount(app)
    await plane.add(gate.agent, count=count)
    return gate


def waiting_in(plane: DataPlane) -> int:
    return len(plane.agents.pool("a").wait_queue)


async def test_above_the_limit_requests_wait_and_are_answered_in_order_of_arrival(plane: DataPlane) -> None:
    gate = await start(plane)
    tasks = []

    def arrived(count: int) -> bool:
        return len(gate.order) + waiting_in(plane) == count

    for number in range(5):
        tasks.append(asking(plane, str(number)))
        await until(partial(arrived, number + 1))
    assert gate.order == ["0"] and waiting_in(plane) == 4
    gate.finish(*map(str, range(5)))
    assert [await task for task in tasks] == [(200, str(number)) for number in range(5)]
    assert gate.order == [str(number) for number in range(5)]
    assert gate.most == 1
    await until(lambda: plane.active() == 0)


async def test_no_request_waits_while_another_instance_has_capacity(plane: DataPlane) -> None:
    gate = await start(plane, count=3)
    tasks = [asking(plane, str(number)) for number in range(3)]
    await gate.begun("0", "1", "2")
    assert waiting_in(plane) == 0
    gate.finish("0", "1", "2")
    assert [await task for task in tasks] == [(200, "0"), (200, "1"), (200, "2")]


async def test_a_request_that_waits_too_long_is_refused_as_overloaded_with_retry_after(plane: DataPlane) -> None:
    gate = await start(plane, connectionTimeout="200ms")
    first = asking(plane, "0")
    await gate.begun("0")
    assert await ask(plane, "1") == (503, "overloaded")
    gate.finish("0")
    assert await first == (200, "0")
    assert gate.order == ["0"]


async def test_a_full_wait_queue_refuses_at_once(plane: DataPlane) -> None:
    gate = await start(plane, maxConnections=2)
    tasks = [asking(plane, "0")]
    await gate.begun("0")
    tasks += [asking(plane, "1"), asking(plane, "2")]
    await until(lambda: waiting_in(plane) == 2)
    assert await ask(plane, "3") == (503, "overloaded")
    gate.finish("0", "1", "2")
    assert sorted([await task for task in tasks]) == [(200, "0"), (200, "1"), (200, "2")]


async def test_the_agents_own_limit_holds_over_all_its_instances(plane: DataPlane) -> None:
    gate = await start(plane, count=3, maxConnections=2, maxConnectionsPerInstance=5)
    tasks = [asking(plane, str(number)) for number in range(4)]
    await until(lambda: len(gate.order) == 2 and waiting_in(plane) == 2)
    gate.finish(*map(str, range(4)))
    assert {(await task)[0] for task in tasks} == {200}
    assert gate.most == 2


async def test_a_client_that_disconnects_while_it_waits_leaves_the_queue(plane: DataPlane) -> None:
    gate = await start(plane)
    first, second, third = asking(plane, "0"), None, None
    await gate.begun("0")
    second = asking(plane, "1")
    await until(lambda: waiting_in(plane) == 1)
    third = asking(plane, "2")
    await until(lambda: waiting_in(plane) == 2)
    second.cancel()
    await until(lambda: waiting_in(plane) == 1)
    gate.finish("0", "1", "2")
    assert (await first, await third) == ((200, "0"), (200, "2"))
    assert gate.order == ["0", "2"]
    await until(lambda: plane.active() == 0)


async def test_waiting_requests_are_refused_at_once_when_no_healthy_instance_is_left(plane: DataPlane) -> None:
    gate = await start(plane)
    first = asking(plane, "0")
    await gate.begun("0")
    waiting = asking(plane, "1")
    await until(lambda: waiting_in(plane) == 1)
    plane.mark("a", "instance-1", "unhealthy")
    assert await waiting == (503, "no_healthy_instance")
    gate.finish("0")
    assert await first == (200, "0")


async def test_an_agent_that_is_removed_refuses_its_waiting_requests(plane: DataPlane) -> None:
    gate = await start(plane)
    first = asking(plane, "0")
    await gate.begun("0")
    waiting = asking(plane, "1")
    await until(lambda: waiting_in(plane) == 1)
    del plane.members["a"]
    plane.announce()
    assert await waiting == (404, "unknown_agent")
    gate.finish("0")
    assert await first == (200, "0")


async def test_a_raised_limit_admits_waiting_requests(plane: DataPlane) -> None:
    gate = await start(plane)
    tasks = [asking(plane, str(number)) for number in range(3)]
    await until(lambda: waiting_in(plane) == 2)
    plane.blocks["a"]["limits"]["maxConnectionsPerInstance"] = 3
    plane.announce()
    await until(lambda: gate.running == 3)
    gate.finish("0", "1", "2")
    assert {(await task)[0] for task in tasks} == {200}


class TestTheInstanceItself:
    async def test_it_refuses_above_the_limit_that_the_gateway_names_and_says_that_it_has_not_begun(
        self, plane: DataPlane
    ) -> None:
        gate = await start(plane)
        first = asking(plane, "0")
        await gate.begun("0")
        port = plane.members["a"][0].port
        headers = {KEY_HEADER.decode(): KEY, LIMIT_HEADER.decode(): "1"}
        async with (
            aiohttp.ClientSession() as other,
            other.post(f"http://127.0.0.1:{port}/messages", json={"message": "1"}, headers=headers) as response,
        ):
            assert (response.status, response.headers[REFUSED_HEADER.decode()]) == (503, "full")
        gate.finish("0")
        assert await first == (200, "0")
        assert gate.order == ["0"]

    async def test_capacity_taken_by_other_gateways_costs_one_refusal_and_the_next_instance_answers(
        self, plane: DataPlane
    ) -> None:
        gate = await start(plane, count=2)
        taken = next(iter(plane.hosts.values()))
        taken.in_flight += 1  # somebody else's
        gate.finish("0", "1", "2")
        for number in range(3):
            assert await ask(plane, str(number)) == (200, str(number))
        taken.in_flight -= 1

    async def test_when_other_gateways_fill_every_instance_the_queue_moves_once_they_are_done(self, plane: DataPlane) -> None:
        """This gateway has nothing in flight that would tell it."""
        gate = await start(plane)
        host = next(iter(plane.hosts.values()))
        host.in_flight += 1
        gate.finish("0")
        waiting = asking(plane, "0")
        await until(lambda: waiting_in(plane) == 1)
        host.in_flight -= 1
        assert await asyncio.wait_for(waiting, 20) == (200, "0")

    async def test_a_websocket_counts_for_as_long_as_it_is_open(self, plane: DataPlane) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            await receive()

        gate = await start(plane, app)
        async with plane.client.ws_connect("/agents/a/ws"):
            waiting = asking(plane, "0")
            await until(lambda: waiting_in(plane) == 1)
        gate.finish("0")
        assert await waiting == (200, "0")


@pytest.mark.parametrize("state", ["draining", "ejected"])
async def test_free_capacity_on_a_draining_or_ejected_instance_does_not_count(plane: DataPlane, state: InstanceState) -> None:
    gate = await start(plane, count=2)
    plane.members["a"] = [replace(plane.members["a"][0], state=state), plane.members["a"][1]]
    plane.announce()
    first = asking(plane, "0")
    await gate.begun("0")
    waiting = asking(plane, "1")
    await until(lambda: waiting_in(plane) == 1)
    gate.finish("0", "1")
    assert (await first, await waiting) == ((200, "0"), (200, "1"))
    assert gate.most == 1


class TestWithoutAGateway:
    """The queue beside two callables."""

    @staticmethod
    def queue(max_waiting: int) -> AgentWaitQueue:
        def choose(*_: object) -> Lease:
            raise NoCapacity

        made = AgentWaitQueue("a", choose, lambda now, lane: False)
        made.configure(max_waiting)
        return made

    async def test_a_full_queue_says_how_many_requests_wait(self) -> None:
        queue = self.queue(max_waiting=1)
        first = asyncio.create_task(queue.wait(Request(), (), 20.0))
        await asyncio.sleep(0)
        assert repr(queue) == "<AgentWaitQueue of a: 1 of 1 requests waiting>"
        with pytest.raises(Overloaded, match=r"^the wait queue is full \(1 requests\)$"):
            await queue.wait(Request(), (), 20.0)
        first.cancel()
        await asyncio.wait([first])
        assert len(queue) == 0

    async def test_a_request_that_expires_says_so(self) -> None:
        queue = self.queue(max_waiting=1)
        waiting = asyncio.create_task(queue.wait(Request(), (), 5.0))
        await asyncio.sleep(0)
        queue.expire(time.monotonic() + 5.0)
        with pytest.raises(Overloaded, match=r"^timed out waiting for a free instance$"):
            await waiting
