"""Clients that do not do what the gateway hopes for: they leave, stop reading, close their half, send garbage, dawdle.

Whatever becomes of their requests is their own doing; what they must not do is harm others, or make a request run twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping
from socket import SO_RCVBUF, SOL_SOCKET
from typing import cast

from tests.campaign.cluster import AGENT
from tests.campaign.load.answers import read_error, read_headers
from tests.campaign.load.http import FAILURES, Answer, Connection, request_bytes
from tests.campaign.load.websocket import talk
from tests.campaign.record import Request

KINDS = ("leaver", "staller", "half-closer", "garbage")
MESSAGES_PATH = f"/agents/{AGENT}/messages"
PATIENCE_S = 15.0  # then the client leaves
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),  # a TLS hello
    b"GET / HTTP/1.1\r\nhost: chaos\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /agents/chaos/messages HTTP/1.1\r\nhost: chaos\r\ntransfer-encoding: chunked\r\n\r\nnot a size\r\n",
    b"POST /agents/chaos/messages HTTP/1.1\r\nhost: chaos\r\ncontent-length: 12\r\n\r\n{'not': json",
    b"BREW /pot HTCPCP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: chaos\r\nx-long: " + b"x" * 200_000 + b"\r\n\r\n",
    b"\0" * 4096,
)
SLOW_HEAD = b"GET /agents/chaos/items/garbage HTTP/1.1\r\nhost: chaos\r\nx-slow: "  # never complete


class MisbehavingClients:
    """`hurry`: how much faster than usual they are, for tests."""

    def __init__(self, port: int, rng: random.Random, hurry: float = 1.0) -> None:
        self._port, self._rng, self._hurry = port, rng, hurry

    async def send(self, request: Request) -> None:
        """A request of one of these KINDS; its outcome is `left`, `ok` or `error`."""
        if request.kind == "leaver" and self._rng.random() < 0.25:
            await self._leave_a_websocket(request)
            return
        clients = {
            "leaver": self._leave,
            "staller": self._stall,
            "half-closer": self._half_close,
            "garbage": self._send_garbage,
        }
        request.outcome, answer = "left", Answer()
        try:
            connection = await Connection.open(self._port)
            request.client_port = connection.port
            try:
                await asyncio.wait_for(clients[request.kind](request, connection, answer), PATIENCE_S / self._hurry)
            finally:
                connection.reset() if self._rng.random() < 0.5 else connection.close()
        except asyncio.TimeoutError:
            request.message = "the client lost its patience"
        except FAILURES as error:
            request.message = f"{type(error).__name__}: {error}"
        else:
            _classify(request, answer)

    async def _pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self._rng.uniform(least, most) / self._hurry)

    async def _leave_a_websocket(self, request: Request) -> None:
        uri = f"ws://127.0.0.1:{self._port}/agents/{AGENT}/talk/{request.id}"
        await talk(request, uri, leave_after=self._rng.choice((1, 2)), pause_s=self._rng.uniform(0, 0.3))
        request.outcome = "error" if request.outcome == "error" else "left"

    async def _leave(self, request: Request, connection: Connection, answer: Answer) -> None:
        """Before the answer, or in the middle of it."""
        stream = self._rng.random() < 0.4
        message = {"work": self._rng.uniform(0.3, 1.0)} | ({"pieces": 20, "gap": 0.1} if stream else {})
        connection.writer.write(_message(request, message, stream=stream))
        if stream:
            await connection.read_head(answer)
        await self._pause(0, 0.5)
        answer.status = 0  # the rest is not read

    async def _stall(self, request: Request, connection: Connection, answer: Answer) -> None:
        """Ask for more than all buffers take, do not read for a while, then read on."""
        transport = cast(asyncio.Transport, connection.writer.transport)
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        connection.writer.write(_message(request, {"pieces": 40, "gap": 0.01, "padding": 1 << 17}, stream=True))
        await connection.read_head(answer)
        transport.pause_reading()
        await self._pause(1, 9)
        transport.resume_reading()
        await connection.read_body(answer)

    async def _half_close(self, request: Request, connection: Connection, answer: Answer) -> None:
        connection.writer.write(_message(request, {"work": self._rng.uniform(0, 0.3)}))
        connection.writer.write_eof()
        await connection.read_head(answer)
        await connection.read_body(answer)

    async def _send_garbage(self, request: Request, connection: Connection, answer: Answer) -> None:
        if self._rng.random() < 0.4:
            connection.writer.write(SLOW_HEAD)
            for _ in range(self._rng.randrange(5, 40)):
                await self._pause(0.05, 0.15)
                if connection.ended:
                    break
                connection.writer.write(b"x")
            return
        connection.writer.write(self._rng.choice(GARBAGE))
        await connection.read_head(answer)
        await connection.read_body(answer)


def _classify(request: Request, answer: Answer) -> None:
    if not answer.status:
        return
    read_headers(request, answer)
    if answer.status < 400:
        if reply := re.search(rf"{request.id}\|(\d+)\|([^|;]+)\|", answer.text):
            request.outcome, request.pid, request.code = "ok", int(reply[1]), reply[2]
        return
    read_error(request, answer.text)
    request.outcome = "error"  # with or without a name: what cannot be parsed has no request to name one for


def _message(request: Request, message: Mapping[str, float], stream: bool = False) -> bytes:
    content = {"message": {"id": request.id, "kind": request.kind, **message}, **({"stream": True} if stream else {})}
    return request_bytes("POST", MESSAGES_PATH, {"x-request-id": request.id}, json.dumps(content).encode())
