"""What is no `Exception`, raised by the agent's code: an agent_error like any other, and the process lives."""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelled
from typing import Any

import pytest

from deployments.instance.hosted_agent import NotAnAgent, load_agent
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, until

GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)  # Python 3.11


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


RAISED: dict[str, Callable[[], BaseException]] = {
    "CancelledError": asyncio.CancelledError,
    "CancelledError of concurrent.futures": FutureCancelled,
    "SystemExit": lambda: SystemExit(2),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
}
if GROUP is not None:
    RAISED["BaseExceptionGroup"] = lambda: GROUP("several", [SystemExit(1), ValueError("x")])
    RAISED["BaseExceptionGroup of a cancellation"] = lambda: GROUP("one", [asyncio.CancelledError()])


def agent_of(form: str, error: Callable[[], BaseException]) -> Agent:
    agent = Agent("rude")

    async def plain(message: str) -> str:
        if message == "fine":
            return "fine"
        raise error()

    def sync(message: str) -> str:
        if message == "fine":
            return "fine"
        raise error()

    async def generator(message: str) -> AsyncIterator[str]:
        yield "one"
        if message != "fine":
            raise error()

    def sync_generator(message: str) -> Iterator[str]:
        yield "one"
        if message != "fine":
            raise error()

    forms: dict[str, Any] = {"async": plain, "sync": sync, "generator": generator, "sync generator": sync_generator}
    agent.on_message(forms[form])
    return agent


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("form", ["async", "sync", "generator", "sync generator"])
async def test_it_is_an_agent_error_and_the_instance_goes_on(plane: DataPlane, form: str, name: str) -> None:
    plane.blocks = {"rude": {"circuitBreaker": {"failureThreshold": 100}}}
    await plane.add(agent_of(form, RAISED[name]))
    status, answer, _ = await post(plane, "rude", {"message": "x"})
    assert (status, answer["error"]["type"]) == (500, "agent_error")
    body = {"model": "rude", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with plane.client.post("/v1/chat/completions", json=body) as response:
        text = await response.text()
    if "generator" in form:
        assert "one" in text and "event: error" in text and "agent_error" in text and "[DONE]" not in text
    else:
        assert (response.status, json.loads(text)["error"]["type"]) == (500, "agent_error")
    assert (await post(plane, "rude", {"message": "fine"}))[0] == 200
    await until(lambda: plane.active() == 0)
    (backend,) = plane.agents.pools["rude"].backends()
    assert 502 not in backend.tally.codes


async def awaits_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize("act", [awaits_a_cancelled_task, cancels_itself])
async def test_a_cancellation_of_the_agents_own_is_an_agent_error(plane: DataPlane, act: Callable[[], Any]) -> None:
    agent = Agent("rude")

    @agent.on_message
    async def handle(message: str) -> None:
        await act()

    await plane.add(agent)
    status, answer, _ = await post(plane, "rude", {"message": "x"})
    assert (status, answer["error"]["type"]) == (500, "agent_error") and "CancelledError" in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_disconnects_still_cancels_the_handler(plane: DataPlane, stream: bool) -> None:
    seen: list[str] = []
    agent = Agent("slow")

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    if stream:

        @agent.on_message
        async def handle(message: str) -> AsyncIterator[str]:
            yield "one"
            await wait()
    else:

        @agent.on_message
        async def answer(message: str) -> None:
            await wait()

    await plane.add(agent)
    request = asyncio.ensure_future(post(plane, "slow", {"message": "x", "stream": stream}))
    await until(lambda: plane.active() == 2)
    await asyncio.sleep(0.05)
    request.cancel()
    await until(lambda: seen == ["cancelled"] and plane.active() == 0)
    (backend,) = plane.agents.pools["slow"].backends()
    assert not any(code >= 500 for code in backend.tally.codes)


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_health_check_that_raises_it_is_unhealthy(name: str, is_async: bool) -> None:
    agent = Agent("rude")
    error = RAISED[name]

    async def check() -> None:
        raise error()

    def sync_check() -> None:
        raise error()

    agent.health_check(check if is_async else sync_check)
    healthy, reason = await agent.check()
    assert not healthy and reason.startswith("health check raised ")


async def test_a_health_check_that_is_given_up_is_cancelled() -> None:
    agent = Agent("slow")

    @agent.health_check
    async def check() -> None:
        await asyncio.sleep(60)

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(agent.check(), 0.01)


@pytest.mark.parametrize("name", ["CancelledError", "SystemExit", "KeyboardInterrupt"])
async def test_every_stop_hook_runs_although_one_raises_it(name: str) -> None:
    agent, seen = Agent("rude"), list[str]()
    agent.on_stop(raising(RAISED[name]()))
    agent.on_stop(lambda: seen.append("second"))
    with pytest.raises(type(RAISED[name]())):
        await agent.stop()
    assert seen == ["second"]


def test_a_module_that_exits_cannot_be_imported_and_the_reason_is_given(tmp_path: Any) -> None:
    (tmp_path / "exits_at_import.py").write_text("import sys\nsys.exit('usage: …')\n")
    with pytest.raises(NotAnAgent, match="exits_at_import:agent cannot be imported: SystemExit: usage"):
        load_agent("exits_at_import:agent", str(tmp_path))
