"""What RFC 6455 demands of a server, frame by frame over a raw connection to a gateway; docs/http.md has the whole table."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.raw import PATIENCE_S, Raw, connected

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = b"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN = 0x80


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        if text == "bye":
            await socket.close(4001, "as asked")
            return
        await socket.send_text(text)


@pytest.fixture
async def app(plane: DataPlane) -> DataPlane:
    agent = Agent("app")
    agent.mount(Starlette(routes=[WebSocketRoute("/ws", echo)]))
    await plane.add(agent)
    return plane


def frame(opcode: int, data: bytes = b"", *, first: int = FIN, masked: bool = True, long: bool = False) -> bytes:
    """`first`: the first byte's upper half: FIN and the reserved bits. `long`: a length in more bytes than it needs."""
    bit = 0x80 if masked else 0
    if len(data) < 126 and not long:
        head = bytes([first | opcode, bit | len(data)])
    elif len(data) < 2**16:
        head = bytes([first | opcode, bit | 126]) + struct.pack("!H", len(data))
    else:
        head = bytes([first | opcode, bit | 127]) + struct.pack("!Q", len(data))
    if not masked:
        return head + data
    mask = b"\x01\x02\x03\x04"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


async def read_frame(client: Raw) -> tuple[int, bytes]:
    """The first byte, and the data of a frame that is not masked."""
    first, length = await asyncio.wait_for(client.reader.readexactly(2), PATIENCE_S)
    assert not length & 0x80, "a server's frame is masked"
    if length == 126:
        (length,) = struct.unpack("!H", await client.reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await client.reader.readexactly(8))
    return first, await client.reader.readexactly(length)


def handshake(headers: bytes = b"", keys: bytes = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n") -> bytes:
    return b"GET /agents/app/ws HTTP/1.1\r\n" + UPGRADE + keys + headers + b"\r\n"


@asynccontextmanager
async def opened(plane: DataPlane, headers: bytes = b"") -> AsyncIterator[Raw]:
    async with connected(plane.gateway.port) as client:
        await client.say(handshake(headers))
        assert (await client.response()).status == 101
        yield client


class TestHandshake:
    async def test_the_accept_value_proves_that_the_key_was_read(self, app: DataPlane) -> None:
        async with connected(app.gateway.port) as client:
            await client.say(handshake())
            head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
        accepted = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        assert head.startswith("HTTP/1.1 101 ")
        assert re.search(rf"(?im)^sec-websocket-accept: {re.escape(accepted)}\r$", head)
        assert re.search(r"(?im)^upgrade: websocket\r$", head) and re.search(r"(?im)^connection: upgrade\r$", head)

    @pytest.mark.parametrize("given", [b"", b"Sec-WebSocket-Version: 8\r\n", b"Sec-WebSocket-Version: 13, 8\r\n"])
    async def test_another_version_is_426_with_the_one_that_is_spoken(self, app: DataPlane, given: bytes) -> None:
        async with connected(app.gateway.port) as client:
            await client.say(handshake(keys=given + b"Sec-WebSocket-Key: " + KEY + b"\r\n"))
            response = await client.response()
            assert (response.status, response.headers["sec-websocket-version"]) == (426, "13")
            assert response.headers["upgrade"] == "websocket" and "upgrade" in response.headers["connection"]

    async def test_extensions_and_subprotocols_that_the_app_does_not_choose_are_not_in_use(self, app: DataPlane) -> None:
        offers = b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat, soap\r\n"
        async with connected(app.gateway.port) as client:
            await client.say(handshake(offers))
            head = (await client.reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert "sec-websocket-extensions" not in head and "sec-websocket-protocol" not in head

    async def test_a_handshake_with_expect_is_continued_first(self, app: DataPlane) -> None:
        async with connected(app.gateway.port) as client:
            await client.say(handshake(b"Expect: 100-continue\r\n"))
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            assert (await client.response()).status == 101


class TestFrames:
    async def test_servers_do_not_mask_and_lengths_take_as_few_bytes_as_they_can(self, app: DataPlane) -> None:
        async with opened(app) as client:
            for text in (b"", b"x" * 125, b"x" * 126, b"x" * 65_535, b"x" * 65_536):
                await client.say(frame(TEXT, text))
                assert await read_frame(client) == (FIN | TEXT, text)

    @pytest.mark.parametrize("data", [b"", b"beat", b"x" * 125])
    async def test_a_ping_is_answered_with_its_data_also_between_fragments(self, app: DataPlane, data: bytes) -> None:
        async with opened(app) as client:
            await client.say(frame(TEXT, b"one ", first=0) + frame(PING, data) + frame(0, b"two"))
            assert await read_frame(client) == (FIN | PONG, data)
            assert await read_frame(client) == (FIN | TEXT, b"one two")

    @pytest.mark.parametrize(
        ("raw", "code"),
        [
            (frame(TEXT, b"hi", masked=False), 1002),
            (frame(TEXT, b"hi", first=FIN | 0x40), 1002),
            (frame(TEXT, b"hi", first=FIN | 0x10), 1002),
            (frame(3, b"hi"), 1002),
            (frame(11, b""), 1002),
            (frame(PING, b"x", first=0), 1002),
            (frame(PING, b"x" * 126), 1002),
            (frame(0, b"nothing begun"), 1002),
            (frame(TEXT, b"one", first=0) + frame(TEXT, b"two"), 1002),
            (frame(CLOSE, b"\x03"), 1002),
            (frame(CLOSE, struct.pack("!H", 1005)), 1002),
            (frame(CLOSE, struct.pack("!H", 999)), 1002),
            (frame(TEXT, b"\xff\xfe"), 1007),
            (frame(TEXT, b"\xe2\x82", first=0) + frame(0, b"x"), 1007),
            (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
        ],
        ids=[
            "not masked", "a reserved bit", "another reserved bit", "an unknown opcode", "an unknown control opcode",
            "a ping in fragments", "a long ping", "a continuation of nothing", "a message within a message",
            "half a code", "a code that is not sent", "a code that is none", "no UTF-8", "no UTF-8 over two fragments",
            "a reason that is no UTF-8",
        ],
    )  # fmt: skip
    async def test_a_frame_that_is_not_allowed_fails_the_connection(
        self, app: DataPlane, raw: bytes, code: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with opened(app) as client:
            await client.say(raw)
            first, data = await read_frame(client)
            assert (first, struct.unpack("!H", data[:2])[0]) == (FIN | CLOSE, code)
            assert await client.rest() == b"", "the server closes"
        assert not [record for record in caplog.records if record.exc_info], "a client fills no log"


class TestClosing:
    @pytest.mark.parametrize("data", [b"", struct.pack("!H", 1000), struct.pack("!H", 4000) + b"done"])
    async def test_a_close_is_answered_with_one_and_the_server_closes_the_connection(self, app: DataPlane, data: bytes) -> None:
        async with opened(app) as client:
            await client.say(frame(CLOSE, data) + frame(TEXT, b"too late"))
            first, answer = await read_frame(client)
            assert first == FIN | CLOSE and answer[:2] in (data[:2], struct.pack("!H", 1000))
            assert await client.rest() == b"", "nothing follows a close"

    async def test_after_its_own_close_the_server_sends_no_messages_and_closes(self, app: DataPlane) -> None:
        async with opened(app) as client:
            await client.say(frame(TEXT, b"bye"))
            assert await read_frame(client) == (FIN | CLOSE, struct.pack("!H", 4001) + b"as asked")
            await client.say(frame(TEXT, b"late") + frame(PING, b"there?") + frame(CLOSE, struct.pack("!H", 4001)))
            assert await read_frame(client) == (FIN | PONG, b"there?"), "until it has received a close itself"
            assert await client.rest() == b""


async def test_the_gateway_masks_what_it_sends_to_an_instance(app: DataPlane) -> None:
    """There it is the client."""
    port = app.members["app"][0].port
    sent: list[bytes] = []

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        instance_reader, instance_writer = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while piece := await instance_reader.read(65536):
                writer.write(piece)

        returning = asyncio.create_task(back())
        while piece := await reader.read(65536):
            sent.append(piece)
            instance_writer.write(piece)
        instance_writer.close()
        await returning
        writer.close()

    server = await asyncio.start_server(between, "127.0.0.1", 0)
    app.members["app"] = [replace(app.members["app"][0], port=server.sockets[0].getsockname()[1], replica="between")]
    app.announce()
    async with opened(app) as client:
        for _ in range(2):
            await client.say(frame(TEXT, b"a secret word"))
            assert await read_frame(client) == (FIN | TEXT, b"a secret word")
        await client.say(frame(CLOSE))
        await read_frame(client)
        await client.rest()
    frames = b"".join(sent).partition(b"\r\n\r\n")[2]
    assert b"a secret word" not in frames and frames[1] & 0x80
    assert frames[2:6] != frames[21:25], "a new mask for each frame"
    server.close()
