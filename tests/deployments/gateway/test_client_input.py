"""A client's input is the client's: whatever it sends, no instance is blamed for it and no other client notices."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, streaming, until
from tests.deployments.raw import connected

AFFINITY = {"echo": {"loadBalancing": {"sessionAffinity": {"enabled": True}}}}
DEEP = [depth * 2 for depth in (150, 490, 985, 5000, 100_000)]

# Bodies that are not a request, whatever the route: each is 400.
MALFORMED = [
    b"",
    b"{",
    b"[1]",
    b'"text"',
    b"null",
    b"\xff\xfe\x00",
    b'{"message": "\xff"}',
    b'{"message": "\xed\xa0\x80"}',
    '{"message": "x"}'.encode("utf-16"),
    '{"message": "x"}'.encode("utf-16-be"),
    '{"message": "x"}'.encode("utf-32"),
    b'{"message": NaN}',
    b'{"message": -Infinity}',
    b'{"message": 1e999}',
    b'{"message": ' + b"9" * 5000 + b"}",
    b'{"message": "\x00"}',
    b'{"message": 1} {}',
    *(b'{"message": ' + b"[" * depth + b"]" * depth + b"}" for depth in DEEP),
    *(b'{"message": 1, "x": ' + b'{"":' * depth + b"1" + b"}" * depth + b"}" for depth in DEEP),
    b'{"message": 1, "x": ' + b"[" * 100_000,
]
NOT_TEXT: list[Any] = [7, 1.5, [], {}, ["x"]]
NOT_MESSAGES: list[Any] = [None, [], {}, "x", 7, [7], [[]], [{}], [{"role": 7}]]
NOT_CONTENT: list[Any] = [7, {}, [7], [{}], [{"type": "text"}]]
# JSON with fields of a wrong type.
WRONG_MESSAGES: list[Any] = [
    {},
    {"messages": "x"},
    *({"message": 1, name: value} for name in ("session_id", "user_id", "stream") for value in NOT_TEXT),
    {"message": 1, "stream": "yes"},
]
WRONG_CHATS: list[Any] = [
    {"model": "echo"},
    *({"model": "echo", "messages": value} for value in NOT_MESSAGES),
    *({"model": "echo", "messages": [{"role": "user", "content": value}]} for value in NOT_CONTENT),
    *(
        {"model": "echo", "messages": [{"role": "user", "content": "x"}], name: value}
        for name, value in (("stream", "yes"), ("user", 7), ("metadata", 7), ("metadata", {"session_id": []}), ("n", 2))
    ),
    {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": "yes"}},
]
# Heads and framings that are refused before they are a request.
BROKEN_HTTP = [
    b"NONSENSE\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b'POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"mes',
    b'POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{"mes',
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n"
    + b"x" * 70_000
    + b"\r\nzz\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000,
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nx y: z\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nx: \x00\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    b"POST /agents/echo/messages HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 300 + b"\r\n",
    b"POST /agents/echo/upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"GET /agents/echo/ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
]


def echo() -> Agent:
    agent = Agent("echo")

    @agent.on_message
    async def handle(message: object, session_id: str) -> object:
        return {"got": message, "session": session_id}

    return agent


def blamed(plane: DataPlane) -> list[str]:
    """What the gateway holds against the instances: open or counting breakers, ejections, errors."""
    return [
        f"{backend.member.id}: {backend.breaker!r}, {backend.tally.codes}"
        for pool in plane.agents.pools.values()
        for backend in pool.backends()
        if "closed, 0 of" not in repr(backend.breaker) or any(code >= 500 for code in backend.tally.codes)
    ]


async def status_of(plane: DataPlane, path: str, body: bytes) -> tuple[int, Any]:
    async with plane.client.post(path, data=body, headers={"content-type": "application/json"}) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: f"{body[:20]!r} {len(body)}")
async def test_a_malformed_body_is_400_in_the_shape_of_its_route(plane: DataPlane, body: bytes) -> None:
    await plane.add(echo())
    status, answer = await status_of(plane, "/agents/echo/messages", body)
    assert (status, answer["error"]["type"]) == (400, "bad_request")
    assert answer["error"]["request_id"]
    chat = body.replace(b'{"message"', b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "message"', 1)
    status, answer = await status_of(plane, "/v1/chat/completions", chat)
    assert (status, answer["error"]["type"]) == (400, "bad_request")
    assert "param" in answer["error"]
    assert blamed(plane) == []


@pytest.mark.parametrize("body", WRONG_MESSAGES, ids=json.dumps)
async def test_a_wrong_type_is_400(plane: DataPlane, body: Any) -> None:
    plane.blocks = AFFINITY
    await plane.add(echo())
    assert (await post(plane, "echo", body))[0] == 400
    assert blamed(plane) == []


@pytest.mark.parametrize("body", WRONG_CHATS, ids=json.dumps)
async def test_a_wrong_type_in_a_chat_is_400(plane: DataPlane, body: Any) -> None:
    await plane.add(echo())
    status, answer = await status_of(plane, "/v1/chat/completions", json.dumps(body).encode())
    assert (status, answer["error"]["type"]) == (400, "bad_request")
    assert blamed(plane) == []


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"session_id": "s", "message": "x"}',
        b' \n{"session_id": "s", "message": "x"}\n',
        b'{"session_id": "first", "message": "x", "session_id": "s"}',
        b'{"session\\u005fid": "s", "message": "x"}',
        b'{"message": {"session_id": "other"}, "session_id": "s"}',
        b'{"message": "\xf0\x9f\x98\x80 \\ud83d", "session_id": "s"}',
        b'{"message": "' + b"x" * 60_000 + b'", "session_id": "s"}',
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_gateway_and_handler_agree_on_the_session(plane: DataPlane, body: bytes) -> None:
    plane.blocks = AFFINITY
    await plane.add(echo(), count=3)
    answers = [(await status_of(plane, "/agents/echo/messages", body))[1]["reply"]["session"] for _ in range(6)]
    assert set(answers) == {"s"}
    assert sorted(sum(host.tally.codes.values()) for host in plane.agents.pools["echo"].backends()) == [0, 0, 6]


async def test_thousands_of_bad_requests_beside_good_ones_hurt_nobody(plane: DataPlane) -> None:
    plane.blocks = {"echo": {"circuitBreaker": {"failureThreshold": 2}, "healthCheck": {"enabled": True}}}
    await plane.add(echo(), count=2)
    bad_json = [*MALFORMED, *(json.dumps(body).encode() for body in WRONG_MESSAGES)]
    bad_chats = [*MALFORMED, *(json.dumps(body).encode() for body in WRONG_CHATS)]
    statuses: list[int] = []
    finished = False

    async def bad() -> None:
        nonlocal finished
        for _ in range(12):
            for path, bodies in (("/agents/echo/messages", bad_json), ("/v1/chat/completions", bad_chats)):
                for body in bodies:
                    statuses.append((await status_of(plane, path, body))[0])
            for data in BROKEN_HTTP:
                async with connected(plane.gateway.port) as connection:
                    await connection.say(data)
                    await asyncio.sleep(0)
            async with plane.client.get("/agents/echo/ws", headers={"sec-websocket-key": "x"}) as response:
                statuses.append(response.status)
        finished = True

    async def good() -> int:
        count = 0
        while not finished:
            status, answer, _ = await post(plane, "echo", {"message": count})
            assert (status, answer["reply"]["got"]) == (200, count)
            count += 1
            await asyncio.sleep(0.005)
        return count

    _, count = await asyncio.gather(bad(), good())
    assert count > 50 and len(statuses) > 1000
    assert set(statuses) == {400, 404}
    await until(lambda: plane.active() == 0)
    assert blamed(plane) == []
    async with plane.client.get("/-/healthz") as response:
        assert response.status == 200


class Question(BaseModel):
    text: str


async def test_a_wrong_type_is_the_clients_400_and_counts_against_no_instance(plane: DataPlane) -> None:
    plane.blocks["typed"] = {"circuitBreaker": {"failureThreshold": 3}}
    agent = Agent("typed")

    @agent.on_message
    async def handle(message: Question) -> str:
        return message.text

    await plane.add(agent)
    wrong: list[Any] = ["why", {"text": 5}, None, [], 7, {}]
    for message in wrong * 3:
        status, body, _ = await post(plane, "typed", {"message": message})
        assert (status, body["error"]["type"]) == (400, "bad_request")
    chat = {"model": "typed", "messages": [{"role": "user", "content": "why"}]}
    async with plane.client.post("/v1/chat/completions", json=chat) as response:
        error = (await response.json())["error"]
        assert (response.status, error["type"], error["param"]) == (400, "bad_request", "message")
    status, body, _ = await post(plane, "typed", {"message": {"text": "why"}})
    assert (status, body["reply"]) == (200, "why")


async def test_a_client_that_closes_its_sending_side_has_left(plane: DataPlane) -> None:
    """As nginx and uvicorn have it: a half-closed connection is a departure, and the work on the instance is cancelled."""
    seen: list[str] = []
    await plane.add(streaming(["one"], forever=True, seen=seen))
    body = b'{"message":"hello","stream":true}'
    head = b"POST /agents/streamer/messages HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with connected(plane.gateway.port) as client:
        await client.say(head % len(body) + body)
        await until(lambda: plane.active() == 2)
        client.writer.write_eof()
        assert b"[DONE]" not in await client.rest()
    await until(lambda: seen == ["closed"] and plane.active() == 0)
