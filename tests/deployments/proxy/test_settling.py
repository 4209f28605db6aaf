"""A session's new home is known to the other gateways before its client has the answer."""

from __future__ import annotations

import asyncio

import aiohttp

from deployments.proxy.proxied_request import ProxiedRequest, RequestState
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, until
from tests.deployments.raw import connected


class Sharing:
    """Other gateways that take their time."""

    def __init__(self) -> None:
        self.asked, self.known = asyncio.Event(), asyncio.Event()

    def announce(self) -> None: ...

    async def settled(self) -> None:
        self.asked.set()
        await self.known.wait()


async def slow_agent(plane: DataPlane) -> tuple[Sharing, asyncio.Event]:
    """One instance, whose answer to "wait" waits for the event."""
    agent, go = Agent("bot"), asyncio.Event()

    @agent.on_message
    async def handle(message: str) -> str:
        if message == "wait":
            await go.wait()
        return message

    plane.blocks["bot"] = {"loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}
    await plane.add(agent)
    sharing = Sharing()
    plane.edge.share_homes(sharing)
    return sharing, go


def in_state(plane: DataPlane, state: RequestState) -> int:
    requests = list(plane.edge._deadlines._limited)
    return sum(isinstance(one, ProxiedRequest) and one.state is state for one in requests)


async def test_a_client_that_leaves_meanwhile_does_not_end_the_request_that_has_its_connection_now(plane: DataPlane) -> None:
    sharing, go = await slow_agent(plane)
    async with aiohttp.ClientSession(plane.url) as leaving:
        first = asyncio.create_task(leaving.post("/agents/bot/messages", json={"message": "hi"}, headers={"x-session-id": "s"}))
        await asyncio.wait_for(sharing.asked.wait(), 20)
        second = asyncio.create_task(post(plane, "bot", {"message": "wait"}))
        await until(lambda: in_state(plane, RequestState.SENT))
        assert len(plane.connections._open) == 1, "the instance's only connection serves the second request"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    await until(lambda: not in_state(plane, RequestState.SETTLING))
    go.set()
    status, body, _ = await asyncio.wait_for(second, 20)
    assert (status, body["reply"]) == (200, "wait")
    await until(lambda: plane.active() == 0)


async def test_the_answer_follows_when_they_know(plane: DataPlane) -> None:
    sharing, _ = await slow_agent(plane)
    asking = asyncio.create_task(post(plane, "bot", {"message": "hi"}, headers={"x-session-id": "s"}))
    await asyncio.wait_for(sharing.asked.wait(), 20)
    assert in_state(plane, RequestState.SETTLING) == 1 and not asking.done()
    sharing.known.set()
    status, body, _ = await asyncio.wait_for(asking, 20)
    assert (status, body["reply"]) == (200, "hi")


async def test_a_whole_pipeline_of_answers_follows_one_that_took_its_time(plane: DataPlane) -> None:
    _, go = await slow_agent(plane)
    content = b'{"message": "wait"}'
    slow = b"POST /agents/bot/messages HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)
    async with connected(plane.gateway.port) as client:
        await client.say(slow + b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n" * 64)
        await until(lambda: in_state(plane, RequestState.SENT))
        go.set()
        assert [(await client.response()).status for _ in range(65)] == [200, *[404] * 64]
