"""A server whose process was stopped for a while answers what has arrived meanwhile, before it enforces any deadline.

The server is a process of its own: a signal that interrupts the wait for input lets timers run before the input is read.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from cluster.transport.http_protocol import ConnectionLimits
from cluster.transport.listener import Listener, bind

HEAD_S, KEEP_ALIVE_S, UNREAD_S = 1.2, 1.2, 1.2
PAUSE_S = 1.6
QUIET_S = 0.8  # below the limits
REQUEST = b"POST /take HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
LARGE = 8 * 2**20


async def app(scope, receive, send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    while (await receive()).get("more_body"):
        pass
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def serve() -> None:
    limits = ConnectionLimits(head_s=HEAD_S, keep_alive_s=KEEP_ALIVE_S, unread_s=UNREAD_S)
    listener = Listener(app, bind("127.0.0.1", 0), limits=limits)
    await listener.start()
    sys.stdout.write(f"{listener.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


@dataclass
class Server:
    process: asyncio.subprocess.Process
    port: int

    async def pause(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.1)
        await meanwhile()
        await asyncio.sleep(PAUSE_S)
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(params=["asyncio", "uvloop"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.cluster.transport.test_paused_server", request.param,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3], env=dict(os.environ),
    )  # fmt: skip
    assert process.stdout is not None
    yield Server(process, int(await process.stdout.readline()))
    process.kill()
    await process.wait()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answered(reader: asyncio.StreamReader) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200")
    await reader.readexactly(2)


async def test_a_request_on_a_kept_connection_is_answered(server: Server) -> None:
    async with connected(server) as (reader, writer):
        writer.write(REQUEST + b"hi")
        await answered(reader)
        await asyncio.sleep(QUIET_S)

        async def send() -> None:
            writer.write(REQUEST + b"hi")

        await server.pause(send)
        await answered(reader)


async def test_a_new_connections_request_is_answered(server: Server) -> None:
    async with connected(server) as (reader, writer):
        await asyncio.sleep(QUIET_S)

        async def send() -> None:
            writer.write(REQUEST + b"hi")

        await server.pause(send)
        await answered(reader)


async def test_the_rest_of_a_head_is_read(server: Server) -> None:
    async with connected(server) as (reader, writer):
        writer.write(REQUEST[:30])
        await asyncio.sleep(QUIET_S)

        async def send() -> None:
            writer.write(REQUEST[30:] + b"hi")

        await server.pause(send)
        await answered(reader)


async def test_a_client_that_reads_only_after_the_pause_gets_the_rest_of_its_answer(server: Server) -> None:
    async with connected(server) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(QUIET_S)

        async def nothing() -> None:
            pass

        await server.pause(nothing)
        assert len(await asyncio.wait_for(reader.readexactly(LARGE), 10)) == LARGE


async def test_a_connection_that_stays_quiet_after_the_pause_is_closed_all_the_same(server: Server) -> None:
    async with connected(server) as (reader, writer):
        writer.write(REQUEST + b"hi")
        await answered(reader)

        async def nothing() -> None:
            pass

        await server.pause(nothing)
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_websocket_message_that_has_arrived_is_answered(server: Server) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(f"http://127.0.0.1:{server.port}/") as socket,
    ):
        await asyncio.sleep(QUIET_S)

        async def send() -> None:
            await socket.send_str("hi")

        await server.pause(send)
        assert await socket.receive_str(timeout=10) == "hi"


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(serve())
    else:
        asyncio.run(serve())
