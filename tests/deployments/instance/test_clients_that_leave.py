"""A client that leaves, at whichever moment, is no error of the agent: no log has a traceback for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import until
from tests.deployments.raw import connected

HANDSHAKE = (
    b"GET /agents/a/%b HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT = b'\x81\x83\0\0\0\0"a"'
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"
POST = b"POST /agents/a/%b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
OPEN_S = 0.15
STREAMED = b'{"message": "hello", "stream": true}'


async def accepts_late(socket: WebSocket) -> None:
    await asyncio.sleep(OPEN_S)
    await socket.accept()
    await socket.send_text("welcome")
    await socket.close()


async def echoes(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_json(await socket.receive_json())


async def sends(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text("x" * 1000)
        await asyncio.sleep(0.01)


async def sends_and_receives(socket: WebSocket) -> None:
    await socket.accept()

    async def receive() -> None:
        while True:
            await socket.receive_text()

    async def send() -> None:
        while True:
            await socket.send_text("x")
            await asyncio.sleep(0.01)

    await asyncio.gather(receive(), send())


async def closes(socket: WebSocket) -> None:
    await socket.accept()
    await asyncio.sleep(OPEN_S + 0.1)
    await socket.close()


async def fails(socket: WebSocket) -> None:
    """A bug in how the app cleans up."""
    await socket.accept()
    try:
        await socket.receive_text()
    finally:
        raise KeyError("cleaning up")


async def takes(request: Request) -> Response:
    return JSONResponse(await request.json())


async def streams(_: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000
            await asyncio.sleep(0.02)

    return StreamingResponse(pieces())


def agent() -> Agent:
    made = Agent("a")

    @made.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        for _ in range(20):
            yield "piece"
            await asyncio.sleep(0.02)

    sockets = (accepts_late, echoes, sends, sends_and_receives, closes, fails)
    routes: list[BaseRoute] = [WebSocketRoute(f"/{socket.__name__}", socket) for socket in sockets]
    made.mount(Starlette(routes=[*routes, Route("/takes", takes, methods=["POST"]), Route("/streams", streams)]))
    return made


async def leave(plane: DataPlane, *says: bytes, wait_s: float) -> None:
    """Say these, each after a while, and leave."""
    await plane.add(agent())
    async with connected(plane.gateway.port) as client:
        for piece in says:
            await client.say(piece)
            await asyncio.sleep(wait_s)
    await asyncio.sleep(0.1)
    await until(lambda: not plane.active())


def errors(log: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in log.records if record.exc_info or record.levelno >= logging.ERROR]
    return [record.getMessage() for record in records if "timeout graceful shutdown" not in record.getMessage()]


@pytest.mark.parametrize("says", [(), (TEXT,), (CLOSE,), (TEXT, CLOSE), (TEXT[:3],)], ids=lambda says: f"{len(b''.join(says))}")
@pytest.mark.parametrize("route", [b"echoes", b"sends", b"sends_and_receives", b"closes"], ids=bytes.decode)
async def test_from_an_open_websocket(
    plane: DataPlane, caplog: pytest.LogCaptureFixture, route: bytes, says: tuple[bytes, ...]
) -> None:
    await leave(plane, HANDSHAKE % route, *says, wait_s=OPEN_S)
    assert errors(caplog) == []


@pytest.mark.parametrize("wait_s", [0.0, 0.05, OPEN_S])
async def test_during_the_handshake(plane: DataPlane, caplog: pytest.LogCaptureFixture, wait_s: float) -> None:
    await leave(plane, HANDSHAKE % b"accepts_late", wait_s=wait_s)
    await asyncio.sleep(OPEN_S)
    assert errors(caplog) == []


@pytest.mark.parametrize("wait_s", [0.0, OPEN_S])
@pytest.mark.parametrize(
    "says",
    [
        (POST % (b"takes", 100), b'{"half": '),
        (POST % (b"takes", 1_000_000), b'{"half": '),
        (POST % (b"messages", 100), b'{"half": '),
        (POST % (b"messages", len(STREAMED)) + STREAMED,),
        (b"GET /agents/a/streams HTTP/1.1\r\nhost: a\r\n\r\n",),
    ],
    ids=["half a small body", "half a large body", "half a message", "a stream of the handler", "a stream of the app"],
)
async def test_from_a_request(
    plane: DataPlane, caplog: pytest.LogCaptureFixture, says: tuple[bytes, ...], wait_s: float
) -> None:
    await leave(plane, *says, wait_s=wait_s)
    assert errors(caplog) == []


async def test_an_error_of_the_apps_own_is_logged_all_the_same(plane: DataPlane, caplog: pytest.LogCaptureFixture) -> None:
    await leave(plane, HANDSHAKE % b"fails", wait_s=OPEN_S)
    (error,) = errors(caplog)
    assert error.endswith("the agent's code raised an exception") and "KeyError: 'cleaning up'" in caplog.text
