"""A gateway that was paused reads what has arrived before it judges: a blocked event loop is a pause to everything on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import own_app, post, until

ANSWER_S = 0.4
PAUSE_S = 1.5
LIMIT_S = 1.0  # of each of the gateway's deadlines: longer than an answer takes, shorter than the pause


def agent() -> Agent:
    made = Agent("a")

    @made.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        yield "a"
        if message != "quick":
            await asyncio.sleep(60 if message == "hang" else ANSWER_S)
        yield "b"

    made.mount(own_app())
    return made


async def plain(plane: DataPlane, message: str = "slow") -> int:
    return (await post(plane, "a", {"message": message}))[0]


async def pause(plane: DataPlane) -> None:
    """Once the requests have reached their place."""
    await asyncio.sleep(0.15)
    time.sleep(PAUSE_S)  # noqa: ASYNC251


async def test_a_request_is_not_timed_out_by_the_gateways_pause(plane: DataPlane) -> None:
    plane.blocks["a"] = {"timeouts": {"request": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    asked = asyncio.create_task(plain(plane))
    await pause(plane)
    assert await asked == 200


async def test_a_request_that_really_takes_too_long_is_timed_out_after_the_pause(plane: DataPlane) -> None:
    plane.blocks["a"] = {"timeouts": {"request": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    asked = asyncio.create_task(plain(plane, "hang"))
    await pause(plane)
    assert await asked == 504


async def test_a_waiting_request_gets_the_capacity_that_was_freed_meanwhile(plane: DataPlane) -> None:
    plane.blocks["a"] = {"limits": {"maxConnectionsPerInstance": 1, "connectionTimeout": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    both = [asyncio.create_task(plain(plane)) for _ in range(2)]
    await until(lambda: len(plane.agents.pools["a"].wait_queue) == 1)
    await pause(plane)
    assert await asyncio.gather(*both) == [200, 200]


async def test_no_breaker_opens_because_the_gateway_could_not_read_the_answers(plane: DataPlane) -> None:
    plane.blocks["a"] = {"circuitBreaker": {"failureThreshold": 1, "timeout": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    asked = asyncio.create_task(plain(plane))
    await pause(plane)
    assert await asked == 200
    (backend,) = plane.agents.pools["a"].backends()
    assert backend.breaker is not None and backend.breaker.state == "closed"


async def test_a_breaker_still_opens_for_an_instance_that_does_not_answer_after_the_pause(plane: DataPlane) -> None:
    plane.blocks["a"] = {"circuitBreaker": {"failureThreshold": 1, "timeout": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    asked = asyncio.create_task(plain(plane, "hang"))
    await pause(plane)
    (backend,) = plane.agents.pools["a"].backends()
    await until(lambda: backend.breaker is not None and backend.breaker.state == "open", 5)
    asked.cancel()


async def test_a_stream_is_not_idle_while_the_gateway_is_paused(plane: DataPlane) -> None:
    plane.blocks["a"] = {"timeouts": {"idle": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    async with plane.client.post("/agents/a/messages", json={"message": "slow", "stream": True}) as response:
        await pause(plane)
        text = (await response.content.read()).decode()
    assert "DONE" in text and "error" not in text


async def test_a_websocket_is_not_idle_while_the_gateway_is_paused(plane: DataPlane) -> None:
    plane.blocks["a"] = {"timeouts": {"idle": f"{LIMIT_S:g}s"}}
    await plane.add(agent())
    async with plane.client.ws_connect("/agents/a/ws") as socket:
        await socket.send_str("1")
        assert await socket.receive_str() == "echo 1"
        await pause(plane)
        await asyncio.sleep(ANSWER_S)
        await socket.send_str("2")
        assert await socket.receive_str(timeout=10) == "echo 2"
