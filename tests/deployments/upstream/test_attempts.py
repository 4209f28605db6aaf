"""Trying again: who may, how often, and that nothing is done twice that must not be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import until

ANSWER = b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok"
KEYED = {"idempotency-key": "k1"}


@asynccontextmanager
async def scripted(plane: DataPlane, *statuses: int) -> AsyncIterator[list[int]]:
    """An instance per status: what it answers everything with; 0: it reads the request and dies. Yields who was asked."""
    asked: list[int] = []

    def instance(number: int, status: int):
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.append(number)
            if status:
                writer.write(ANSWER % status)
                await writer.drain()
            writer.close()

        return serve

    await plane.add(Agent("a"), count=len(statuses))
    servers = [await asyncio.start_server(instance(n, s), "127.0.0.1", 0) for n, s in enumerate(statuses, 1)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    plane.members["a"] = [replace(m, port=port) for m, port in zip(plane.members["a"], ports, strict=True)]
    weights = {f"instance-{n}": 1 if n == 1 else 0.000001 for n in range(1, len(statuses) + 1)}
    plane.blocks["a"] = {"loadBalancing": {"weighted": weights}, **plane.blocks.get("a", {})}  # the first is asked first
    plane.announce()
    try:
        yield asked
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize(
    ("method", "headers", "times"),
    [("POST", {}, 1), ("PATCH", {}, 1), ("POST", KEYED, 2), ("GET", {}, 2), ("PUT", {}, 2), ("DELETE", {}, 2)],
)
async def test_one_that_may_have_begun_is_repeated_only_where_that_does_no_harm(
    plane: DataPlane, method: str, headers: dict[str, str], times: int
) -> None:
    async with scripted(plane, 0, 200) as asked, plane.client.request(method, "/agents/a/x", headers=headers) as response:
        assert response.status == (200 if times == 2 else 502)
        assert response.headers.get("x-swiftclaw-attempts") == ("2" if times == 2 else None)
        assert asked == [1, 2][:times]
    assert plane.reporter.observation().retries == ({"a": 1} if times == 2 else {})


@pytest.mark.parametrize(("status", "times"), [(502, 2), (503, 2), (504, 2), (500, 1), (429, 1), (404, 1)])
async def test_an_apps_gateway_error_is_repeated_and_no_other_answer(plane: DataPlane, status: int, times: int) -> None:
    async with scripted(plane, status, 200) as asked, plane.client.get("/agents/a/x") as response:
        assert (response.status, len(asked)) == ((200, 2) if times == 2 else (status, 1))


@asynccontextmanager
async def frozen_first(plane: DataPlane, timeout: str, threshold: int = 2) -> AsyncIterator[list[int]]:
    """Two instances, of which the first is asked first, takes requests and never answers. Yields which were left again."""
    left: list[int] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.append(1)
        writer.close()

    plane.blocks["a"] = {"circuitBreaker": {"failureThreshold": threshold, "timeout": timeout, "resetTimeout": "60s"}}
    async with scripted(plane, 0, 200):
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        first, second = plane.members["a"]
        plane.members["a"] = [replace(first, port=server.sockets[0].getsockname()[1]), second]
        plane.announce()
        yield left
        server.close()


async def test_who_waits_for_an_instance_that_is_given_up_is_answered_by_another_if_repeating_does_no_harm(
    plane: DataPlane,
) -> None:
    async def ask(method: str) -> tuple[int, str | None, str | None]:
        async with plane.client.request(method, "/agents/a/x") as response:
            return response.status, response.headers.get("x-swiftclaw-attempts"), response.headers.get("x-swiftclaw-instance")

    async with frozen_first(plane, "200ms") as left:
        post = asyncio.create_task(ask("POST"))
        gets = await asyncio.gather(ask("GET"), ask("GET"))
        assert list(gets) == [(200, "2", "instance-2")] * 2
        assert not post.done(), "it may have been begun, and is waited for"
        await until(lambda: len(left) == 2)
        post.cancel()
    await until(lambda: plane.active() == 0)
    assert plane.reporter.observation().retries == {"a": 2}


async def test_one_that_is_only_late_is_waited_for(plane: DataPlane) -> None:
    async with frozen_first(plane, "50ms", threshold=3) as left:
        asked = [asyncio.create_task(plane.client.get("/agents/a/x")) for _ in range(2)]
        await until(lambda: sum(len(backend.overdue) for backend in plane.agents.pool("a").backends()) == 2)
        await asyncio.sleep(0.1)  # some ticks more
        assert left == []
        for one in asked:
            one.cancel()


async def test_when_a_client_leaves_one_that_is_given_up_nothing_is_sent_again(plane: DataPlane) -> None:
    async with frozen_first(plane, "100ms", threshold=1):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(plane.client.post("/agents/a/x"), 0.5)
        await until(lambda: plane.active() == 0)
    assert plane.reporter.observation().retries == {}


async def test_there_are_no_more_attempts_than_set_and_none_on_the_same_instance(plane: DataPlane) -> None:
    async with scripted(plane, 0, 0, 0, 0, 0) as asked, plane.client.get("/agents/a/x") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (502, "instance_failed")
        assert response.headers["x-swiftclaw-attempts"] == "3"
        assert len(asked) == len(set(asked)) == 3


async def test_the_last_one_is_not_asked_again_and_its_failure_is_what_the_client_hears(plane: DataPlane) -> None:
    async with scripted(plane, 503) as asked, plane.client.get("/agents/a/x") as response:
        assert (response.status, await response.text(), asked) == (503, "ok", [1])


async def test_an_instance_that_refuses_the_connection_is_passed_over_however_many_there_are(plane: DataPlane) -> None:
    plane.blocks["a"] = {"retry": {"attempts": 0}}
    await plane.add(Agent("a"), count=6)
    for number in range(1, 6):
        await plane.end(f"a-instance-{number}")
    async with plane.client.post("/agents/a/messages", json={"message": "x"}) as response:
        assert (response.status, response.headers["x-swiftclaw-instance"]) == (200, "instance-6")


async def test_when_nobody_can_be_connected_to_the_error_says_so_and_when_to_come_again(plane: DataPlane) -> None:
    await plane.add(Agent("a"), count=3)
    for number in range(1, 4):
        await plane.end(f"a-instance-{number}")
    for _ in range(5):
        async with plane.client.post("/agents/a/messages", json={"message": "x"}) as response:
            assert response.status == 503
            assert (await response.json())["error"]["type"] in ("no_healthy_instance", "circuit_open")
            assert int(response.headers["retry-after"]) >= 1


async def test_the_budget_keeps_retries_from_multiplying(plane: DataPlane) -> None:
    """Of twenty requests in hand at once that all fail, a fifth may be tried again, and no fewer than three."""
    plane.blocks["a"] = {"retry": {"attempts": 1, "budget": 20}, "circuitBreaker": {"enabled": False}}
    held = asyncio.Event()

    async with scripted(plane, 0, 200):

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await held.wait()
            writer.close()

        slow = await asyncio.start_server(hold, "127.0.0.1", 0)
        first, second = plane.members["a"]
        plane.members["a"] = [replace(first, port=slow.sockets[0].getsockname()[1]), replace(second, port=first.port)]
        plane.announce()
        tasks = [asyncio.create_task(status(plane)) for _ in range(20)]
        while plane.agents.pool("a").budget.active < 20:
            await asyncio.sleep(0.01)
        held.set()
        await asyncio.gather(*tasks)
        slow.close()
    assert plane.reporter.observation().retries["a"] == 4
    budget = plane.agents.pool("a").budget
    assert (budget.active, budget.retrying) == (0, 0)


async def status(plane: DataPlane) -> int:
    async with plane.client.get("/agents/a/x") as response:
        return response.status
