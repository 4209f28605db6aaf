"""One line of JSON per request where an agent wants it: what it says, whom it leaves out, and that it is written once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cluster.config import ConfigError, agent_from_block
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import ACCESS_LOG_ON, Lines, until

FIELDS = [
    "time", "agent", "instance", "version", "region", "strategy", "attempts", "queue_ms", "first_byte_ms", "total_ms", "status",
    "error", "method", "path", "request_id",
]  # fmt: skip


def agent(name: str = "a") -> Agent:
    made = Agent(name)

    @made.on_message
    async def handle(message: str) -> str:
        if message == "wait":
            await asyncio.sleep(60)
        if message == "raise":
            raise ValueError("no")
        return message

    return made


async def ask(plane: DataPlane, message: str, path: str = "/agents/a/messages", **options: Any) -> int:
    async with plane.client.post(path, json={"message": message, "user_id": "ann", "session_id": "s-1"}, **options) as response:
        await response.read()
        return response.status


async def test_off_as_it_is_by_default_nothing_is_written_and_nothing_is_kept(plane: DataPlane, lines: Lines) -> None:
    await plane.add(agent())
    assert await ask(plane, "hi") == 200
    plane.blocks["a"] = ACCESS_LOG_ON
    plane.announce()
    assert await ask(plane, "hi", headers={"x-request-id": "second"}) == 200
    plane.blocks["a"] = {}
    plane.announce()
    assert await ask(plane, "hi") == 200
    await until(lambda: plane.active() == 0)
    assert [line["request_id"] for line in lines()] == ["second"]


async def test_a_line_says_who_answered_how_long_it_took_and_nothing_of_the_user(plane: DataPlane, lines: Lines) -> None:
    plane.blocks["a"] = {**ACCESS_LOG_ON, "loadBalancing": {"strategy": "least-connections"}}
    await plane.add(agent(), version="v7", region="eu-west-1")
    before = time.time()
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    options: dict[str, Any] = {
        "headers": {"traceparent": traceparent, "x-request-id": "r1", "x-session-id": "s-2"},
        "params": {"key": "secret"},
    }
    assert await ask(plane, "a private word", **options) == 200
    (line,) = await lines.arrive(1)
    assert list(line) == [*FIELDS, "trace_id"]
    assert before - 0.01 <= datetime.fromisoformat(line["time"]).timestamp() <= time.time()
    assert 0 < line["first_byte_ms"] <= line["total_ms"] and line["queue_ms"] == 0
    told = {name: line[name] for name in FIELDS if name not in ("time", "queue_ms", "first_byte_ms", "total_ms")}
    assert told == {
        "agent": "a", "instance": "instance-1", "version": "v7", "region": "eu-west-1", "strategy": "least-connections",
        "attempts": 1, "status": 200, "error": None, "method": "POST", "path": "/agents/a/messages", "request_id": "r1",
    }  # fmt: skip
    assert line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    written = lines.file.read_text("utf-8")
    assert not any(word in written for word in ("private", "secret", "ann", "s-1", "s-2"))


async def test_requests_that_no_instance_was_chosen_for_have_a_line_with_the_reason(plane: DataPlane, lines: Lines) -> None:
    plane.blocks["a"] = {**ACCESS_LOG_ON, "rateLimit": {"enabled": True, "requests": 1, "window": "1h"}}
    await plane.add(agent())
    chat = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
    assert await ask(plane, "hi") == 200
    assert (await plane.client.post("/v1/chat/completions", json=chat)).status == 429
    assert (await plane.client.get("/agents/a/messages")).status == 405
    plane.blocks["a"] = ACCESS_LOG_ON
    plane.mark("a", "instance-1", "unhealthy")
    assert await ask(plane, "hi") == 503
    assert await ask(plane, "hi", "/agents/nobody/messages") == 404  # no agent, so no agent's line
    found = await lines.arrive(4)
    assert [(line["status"], line["error"], line["instance"], line["attempts"]) for line in found] == [
        (200, None, "instance-1", 1),
        (429, "rate_limited", None, 0),
        (405, "method_not_allowed", None, 0),
        (503, "no_healthy_instance", None, 0),
    ]
    assert [line["path"] for line in found[1:]] == ["/v1/chat/completions", "/agents/a/messages", "/agents/a/messages"]
    assert all(line["first_byte_ms"] is None for line in found[1:])


async def test_who_waits_in_the_line_is_told_with_the_time_also_when_he_waits_in_vain(plane: DataPlane, lines: Lines) -> None:
    limits = {"maxConnectionsPerInstance": 1, "connectionTimeout": "200ms"}
    plane.blocks["a"] = {**ACCESS_LOG_ON, "limits": limits}
    await plane.add(agent())
    first = asyncio.create_task(ask(plane, "wait"))
    await until(lambda: plane.active() == 2)
    assert await ask(plane, "hi") == 503
    (waited,) = await lines.arrive(1)
    assert (waited["error"], waited["attempts"]) == ("overloaded", 0)
    assert waited["total_ms"] >= waited["queue_ms"] >= 150
    plane.blocks["a"]["limits"] = {**limits, "connectionTimeout": "30s"}
    plane.announce()
    second = asyncio.create_task(ask(plane, "hi"))
    await until(lambda: len(plane.agents.pools["a"].wait_queue) == 1)
    await asyncio.sleep(0.1)
    first.cancel()
    assert await second == 200
    left, served = (await lines.arrive(3))[1:]
    if left["status"] == 200:
        left, served = served, left
    assert (left["status"], left["error"]) == (499, "client_gone")
    assert served["queue_ms"] >= 90 and served["first_byte_ms"] >= served["queue_ms"]


async def test_every_instance_that_was_asked_counts_and_the_last_is_named(plane: DataPlane, lines: Lines) -> None:
    plane.blocks["a"] = ACCESS_LOG_ON
    names = await plane.add(agent(), 2)
    await plane.end("a-instance-1")
    for _ in range(4):
        assert await ask(plane, "hi") == 200
        if max(line["attempts"] for line in lines()) == 2:
            break
    again = next(line for line in lines() if line["attempts"] == 2)
    assert (again["instance"], names) == ("instance-2", ["instance-1", "instance-2"])


async def test_an_error_of_the_agent_and_a_stream_that_breaks_each_have_a_line(plane: DataPlane, lines: Lines) -> None:
    plane.blocks["s"] = ACCESS_LOG_ON
    made = Agent("s")

    @made.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        if message == "raise":
            raise ValueError("no")
        yield "one"
        await asyncio.sleep(60)

    await plane.add(made)
    plane.blocks["s"] = {**ACCESS_LOG_ON, "timeouts": {"idle": "200ms"}}
    plane.announce()
    assert await ask(plane, "raise", "/agents/s/messages") == 500
    async with plane.client.post("/agents/s/messages", json={"message": "go", "stream": True}) as response:
        assert response.status == 200
        assert b"event: error" in await response.read()
    failed, broken = await lines.arrive(2)
    assert (failed["status"], failed["error"]) == (500, None)
    assert (broken["status"], broken["error"], broken["instance"]) == (200, "request_timeout", "instance-1")
    assert broken["first_byte_ms"] < broken["total_ms"]


async def test_of_a_hundred_a_tenth_is_written_but_every_error(plane: DataPlane, lines: Lines) -> None:
    plane.blocks["a"] = {"accessLog": {"enabled": True, "sample": 10}, "circuitBreaker": {"enabled": False}}
    await plane.add(agent())
    for _ in range(300):
        await ask(plane, "hi")
    sampled = len(lines())
    assert 10 <= sampled <= 55  # 30 expected; the gateway's Random is seeded
    for _ in range(5):
        assert await ask(plane, "raise") == 500
    await until(lambda: plane.active() == 0)
    assert [line["status"] for line in lines()[sampled:]] == [500] * 5


async def test_errors_only_leaves_out_what_went_well_and_clients_that_left(plane: DataPlane, lines: Lines) -> None:
    plane.blocks["a"] = {"accessLog": {"enabled": True, "errorsOnly": True}}
    await plane.add(agent())
    assert await ask(plane, "hi") == 200
    with pytest.raises(asyncio.TimeoutError):
        await ask(plane, "wait", timeout=aiohttp.ClientTimeout(total=0.2))
    await until(lambda: plane.active() == 0)
    assert await ask(plane, "raise") == 500
    assert (await plane.client.get("/agents/a/messages")).status == 405
    assert [line["status"] for line in await lines.arrive(2)] == [500, 405]


async def test_a_websocket_has_its_line_when_it_ends(plane: DataPlane, lines: Lines) -> None:
    async def socket(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("a page")

    made = Agent("web")
    made.mount(Starlette(routes=[WebSocketRoute("/ws", socket), Route("/page", page)]))
    plane.blocks["web"] = ACCESS_LOG_ON
    await plane.add(made)
    async with plane.client.ws_connect("/agents/web/ws?token=secret") as ws:
        await ws.send_str("hi")
        assert await ws.receive_str() == "hi"
        assert lines() == []
    (ended,) = await lines.arrive(1)
    assert (ended["status"], ended["error"], ended["path"]) == (101, None, "/agents/web/ws")
    assert ended["instance"] == "instance-1" and ended["first_byte_ms"] <= ended["total_ms"]
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await plane.client.ws_connect("/agents/web/nowhere")
    plane.mark("web", "instance-1", "unhealthy")
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await plane.client.ws_connect("/agents/web/ws")
    declined, refused = (await lines.arrive(3))[1:]
    assert (declined["status"], declined["error"], declined["attempts"]) == (403, None, 1)
    assert (refused["status"], refused["error"], refused["attempts"]) == (503, "no_healthy_instance", 0)


def test_the_block_says_what_it_allows() -> None:
    with pytest.raises(ConfigError) as refused:
        agent_from_block("a", {"agent": "m:a", "accessLog": {"sample": 101, "errorOnly": True}}, Path("/"))
    assert "agents.a.accessLog.sample: 101 is not a percentage (0 to 100)" in str(refused.value)
    assert "did you mean errorsOnly?" in str(refused.value)
