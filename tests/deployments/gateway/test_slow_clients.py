"""Clients that say nothing, say it slowly, or do not listen: none of them holds a place or a connection for ever."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request as AppRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cluster.transport.http_protocol import ConnectionLimits
from cluster.transport.listener import Listener, bind
from cluster.transport.tls import Certificate
from deployments.gateway import edge
from deployments.proxy.client_connection import ClientConnection
from swiftclaw import Agent
from tests.certificates import Files
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, until
from tests.deployments.raw import Raw, connected

HEAD_S, KEEP_ALIVE_S, UNREAD_S = 0.8, 0.9, 1.0
PIECE = b"x" * 100_000
HALF_A_HEAD = b"GET /-/routes HTTP/1.1\r\nhost: a\r\nx-half"
HOST = b"host: a\r\n"


def agent() -> Agent:
    made = Agent("slow")

    @made.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        while message == "for ever":
            yield PIECE.decode()
            await asyncio.sleep(0)
        yield "done"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield PIECE

    async def download(_: AppRequest) -> Response:
        return StreamingResponse(pieces(), headers={"content-length": str(300 * len(PIECE))})

    async def take(request: AppRequest) -> Response:
        return JSONResponse(len(await request.body()))

    async def shout(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_bytes(PIECE)

    routes = [Route("/download", download), Route("/take", take, methods=["POST"]), WebSocketRoute("/shout", shout)]
    made.mount(Starlette(routes=routes))
    return made


@pytest.fixture
async def plane() -> AsyncIterator[DataPlane]:
    limits = ConnectionLimits(head_s=HEAD_S, keep_alive_s=KEEP_ALIVE_S, unread_s=UNREAD_S, head_bytes=20_000)
    plane = DataPlane(limits=limits)
    await plane.start()
    await plane.add(agent())
    yield plane
    await plane.stop()


@pytest.fixture
def port(plane: DataPlane) -> int:
    return plane.gateway.port


async def nothing_left(plane: DataPlane) -> None:
    """No request in flight anywhere, and no connection."""
    await until(lambda: plane.active() == 0 and plane.gateway.connections == 0)


def post_head(path: bytes, length: int) -> bytes:
    return b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (path, HOST, length)


def message(text: str) -> bytes:
    body = b'{"message": "%s", "stream": true}' % text.encode()
    return post_head(b"/agents/slow/messages", len(body)) + body


class DeafClient:
    """Asks, and does not read the answer. A small receive buffer, so that little of it is on its way."""

    def __init__(self, port: int, ask: bytes) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(ask)

    async def __aenter__(self) -> DeafClient:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.socket.close()


class TestHeads:
    async def test_a_client_that_says_nothing_is_shown_out_without_a_word(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            assert await client.rest() == b""
        await nothing_left(plane)

    @pytest.mark.parametrize("said", [b"G", HALF_A_HEAD, b"GET / HTTP/1.1\r\n"])
    async def test_half_a_head_is_408(self, plane: DataPlane, port: int, said: bytes) -> None:
        async with connected(port) as client:
            await client.say(said)
            answer = await client.response()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert b"bad_request" in answer.body
            assert await client.rest() == b""
        await nothing_left(plane)
        assert plane.reporter.observation().refusals == {("", 408): 1}

    async def test_a_byte_now_and_then_does_not_buy_time(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            await client.say(HALF_A_HEAD)
            answering = asyncio.create_task(client.response())
            while not answering.done():
                client.writer.write(b"x")
                await asyncio.sleep(0.05)
            assert (await answering).status == 408
        await nothing_left(plane)

    async def test_a_head_that_is_too_long_is_431_at_once(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            await client.say(b"GET / HTTP/1.1\r\nx-long: " + b"x" * 20_001)
            assert (await client.response()).status == 431
        await nothing_left(plane)

    async def test_a_kept_connection_is_closed_when_nothing_comes(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            for _ in range(2):
                await client.say(b"GET /-/routes HTTP/1.1\r\n" + HOST + b"\r\n")
                assert (await client.response()).status == 200
            assert await client.rest() == b""
        await nothing_left(plane)

    async def test_an_agents_idle_timeout_is_that_of_the_connection_after_its_answer(self, plane: DataPlane, port: int) -> None:
        """For ever in the listener's own words: only what the agent says can end it."""
        plane.blocks["slow"] = {"timeouts": {"idle": KEEP_ALIVE_S}}
        plane.announce()
        patient = Listener(
            plane.edge, bind("127.0.0.1", 0), limits=ConnectionLimits(keep_alive_s=math.inf), grace_s=0,
            protocol=partial(ClientConnection, plane.edge.receive),
        )  # fmt: skip
        await patient.start()
        async with connected(patient.port) as client:
            await client.say(message("x"))
            assert (await client.response()).status == 200
            assert await client.rest() == b""
        await patient.close()

    async def test_blank_lines_do_not_keep_a_connection(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            await client.say(b"GET /-/routes HTTP/1.1\r\n" + HOST + b"\r\n")
            await client.response()
            closing = asyncio.create_task(client.rest())
            while not closing.done():
                client.writer.write(b"\r\n")
                await asyncio.sleep(0.05)
            assert await closing == b""
        await nothing_left(plane)

    async def test_half_a_head_behind_a_running_request_does_not_cut_its_answer(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            body = b'{"message": "hi", "stream": true}'
            await client.say(post_head(b"/agents/slow/messages", len(body)) + body + HALF_A_HEAD)
            answer = await client.response()
            assert answer.status == 200 and answer.body.endswith(b"data: [DONE]\n\n")
            assert (await client.response()).status == 408
            assert await client.rest() == b""
        await nothing_left(plane)

    async def test_200_silent_clients_are_in_nobodys_way(self, plane: DataPlane, port: int) -> None:
        async with AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(connected(port)) for _ in range(200)]
            for _ in range(20):
                status, _, _ = await post(plane, "slow", {"message": "hi"})
                assert status == 200
            assert await asyncio.gather(*(client.rest() for client in silent)) == [b""] * 200
        await plane.client.close()
        await nothing_left(plane)


class TestBodies:
    async def dribble(self, client: Raw, head: bytes) -> bytes:
        """All that comes while the body's bytes arrive one by one, until the connection is closed."""
        await client.say(head + b"{")
        heard = asyncio.create_task(client.rest())
        while not heard.done():
            client.writer.write(b" ")
            await asyncio.sleep(0.05)
        return await heard

    @pytest.mark.parametrize("length", [1000, 10_000_000])
    @pytest.mark.parametrize("path", ["/agents/slow/messages", "/agents/slow/take"])
    async def test_a_body_that_dribbles_in_is_504_after_the_request_timeout(
        self, plane: DataPlane, port: int, path: str, length: int
    ) -> None:
        plane.blocks["slow"] = {"timeouts": {"request": "500ms"}}
        plane.announce()
        async with connected(port) as client:
            heard = await self.dribble(client, post_head(path.encode(), length))
            assert heard.startswith(b"HTTP/1.1 504") and heard.count(b"HTTP/1.1") == 1
        await nothing_left(plane)

    async def test_so_is_that_of_a_chat(self, plane: DataPlane, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(edge, "CHAT_BODY_S", 0.5)
        async with connected(port) as client:
            heard = await self.dribble(client, post_head(b"/v1/chat/completions", 1000))
            assert heard.startswith(b"HTTP/1.1 504")
        await nothing_left(plane)

    async def test_a_body_that_nobody_waits_for_does_not_keep_the_connection(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            heard = await self.dribble(client, post_head(b"/agents/nobody/messages", 1000))
            assert heard.startswith(b"HTTP/1.1 404") and heard.count(b"HTTP/1.1") == 1
        await nothing_left(plane)

    async def test_a_body_that_comes_after_its_answer_leaves_the_connection_usable(self, port: int) -> None:
        async with connected(port) as client:
            await client.say(post_head(b"/agents/nobody/messages", 4))
            assert (await client.response()).status == 404
            await client.say(b"body" + b"GET /-/routes HTTP/1.1\r\n" + HOST + b"\r\n")
            assert (await client.response()).status == 200


class TestAnswers:
    @pytest.fixture(params=["asyncio", "uvloop"])  # Ray's replicas run on uvloop; the transports of the two differ
    def event_loop_policy(self, request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
        return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()

    @pytest.mark.parametrize("ask", [message("for ever"), b"GET /agents/slow/download HTTP/1.1\r\n" + HOST + b"\r\n"])
    async def test_an_answer_that_nobody_reads_ends(self, plane: DataPlane, port: int, ask: bytes) -> None:
        async with DeafClient(port, ask):
            await until(lambda: plane.active() > 0)
            await nothing_left(plane)

    async def test_also_when_the_time_for_silence_is_up_first(self, plane: DataPlane, port: int) -> None:
        plane.blocks["slow"] = {"timeouts": {"idle": "200ms"}}
        plane.announce()
        async with DeafClient(port, message("for ever")):
            await until(lambda: plane.active() > 0)
            await nothing_left(plane)

    async def test_also_when_the_server_stops_meanwhile(self, plane: DataPlane, port: int) -> None:
        async with DeafClient(port, message("for ever")):
            await until(lambda: plane.active() > 0)
            await plane.gateway.close()
            await nothing_left(plane)

    async def test_a_websocket_that_nobody_reads_ends(self, plane: DataPlane, port: int) -> None:
        ask = b"GET /agents/slow/shout HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: websocket\r\n"
        ask += b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        async with DeafClient(port, ask):
            await until(lambda: plane.active() > 0)
            await nothing_left(plane)

    async def test_an_answer_over_tls_that_nobody_reads_ends(self, tmp_path: Path) -> None:
        files = Files(tmp_path / "cert.pem", tmp_path / "key.pem")
        files.make(serial=1)
        context = Certificate(str(files.cert), str(files.key)).context
        plane = DataPlane(limits=ConnectionLimits(unread_s=UNREAD_S), tls=context)
        await plane.start()
        await plane.add(agent())
        try:
            with socket.create_connection(("127.0.0.1", plane.gateway.port)) as plain:
                client = await asyncio.to_thread(files.trusted().wrap_socket, plain, server_hostname="localhost")
                with client:
                    await asyncio.to_thread(client.sendall, message("for ever"))
                    await until(lambda: plane.active() > 0)
                    await nothing_left(plane)
        finally:
            await plane.stop()

    async def test_who_reads_slowly_is_served_to_the_end(self, plane: DataPlane, port: int) -> None:
        ask = b"GET /agents/slow/download HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        began = asyncio.get_running_loop().time()
        async with DeafClient(port, ask) as client:
            client.socket.setblocking(False)
            read, want = 0, 300 * len(PIECE)
            while piece := await asyncio.get_running_loop().sock_recv(client.socket, 2**18):
                read += len(piece)
                due = began + 3 * UNREAD_S * read / want  # three times as long as one may read nothing
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        assert read > want
        await nothing_left(plane)

    async def test_a_client_that_leaves_with_a_second_request_in_line_ends_the_first(self, plane: DataPlane, port: int) -> None:
        async with connected(port) as client:
            await client.say(message("for ever") + b"GET /-/routes HTTP/1.1\r\n" + HOST + b"\r\n")
            await client.reader.readuntil(b"data: ")
            assert plane.active() > 0
        await nothing_left(plane)


async def test_a_client_that_never_finishes_the_handshake_of_tls_is_shown_out() -> None:
    plane = DataPlane(limits=ConnectionLimits(head_s=HEAD_S), tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    await plane.start()
    try:
        async with connected(plane.gateway.port) as silent, connected(plane.gateway.port) as half:
            await half.say(b"\x16\x03\x01")
            assert (await silent.rest(), await half.rest()) == (b"", b"")
    finally:
        await plane.stop()
