"""One WebSocket to an instance: the client's half of RFC 6455 over asyncio, with the frames of `websockets`.

What a proxy needs and general clients do not give: the headers of an accepted handshake, the whole response of a declined one,
close codes and reasons both ways (also none), and any subprotocol that the app chooses. A message that is not taken makes the
instance wait, and one that the instance does not read makes the client wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI

from cluster.transport.running_clock import running_clock
from deployments.types import Headers, SentHeaders
from deployments.upstream.connection import ConnectionBroken, NotConnected

ABNORMAL, NO_STATUS = 1006, 1005
CLOSE_S = 5.0  # for the instance to confirm that the WebSocket is closed
_HANDSHAKE = frozenset(
    (b"connection", b"upgrade", b"sec-websocket-accept", b"sec-websocket-protocol", b"sec-websocket-extensions")
)


@dataclass(frozen=True, slots=True)
class Closed:
    """How the instance closed it. 1006: its connection broke; 1005: without a code."""

    code: int
    reason: str


class HandshakeDeclined(Exception):
    """The instance answered the handshake with another response."""

    def __init__(self, status: int, headers: SentHeaders, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status, self.headers, self.body = status, headers, body


class _AnySubprotocol(ClientProtocol):
    """Whether the app chose one that was offered is between the app and its client."""

    def process_subprotocol(self, headers: Any) -> Any:
        return next(iter(headers.get_all("Sec-WebSocket-Protocol")), None)


class InstanceWebSocket(asyncio.Protocol):
    """`headers`: of the accepted handshake, without those of the handshake itself. `subprotocol`: the app's choice."""

    def __init__(self) -> None:
        self.headers: SentHeaders = []
        self.subprotocol: str | None = None
        self._frames = _AnySubprotocol(WebSocketURI(False, "instance", 80, "/", ""), max_size=None)
        self._handshake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received: deque[str | bytes | Closed] = deque()
        self._parts: list[bytes] = []
        self._is_text = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = asyncio.Event()  # the connection
        self._clock = running_clock()
        self.active_at = self._clock.now()  # when the newest part of a message arrived
        self._transport: asyncio.Transport | None = None

    async def open(self, path: str, headers: Headers, subprotocols: list[str]) -> None:
        """Once connected: the handshake. Raises HandshakeDeclined, ConnectionBroken; NotConnected if nothing could be sent."""
        if self._transport is None or self._transport.is_closing():
            self._handshake.cancel()
            raise NotConnected("the connection was closed before the handshake")
        offered = [(b"sec-websocket-protocol", ", ".join(subprotocols).encode())] if subprotocols else []
        lines = [f"GET {path} HTTP/1.1".encode("latin-1")]
        lines += [
            b"%b: %b" % header
            for header in (
                *headers,
                (b"upgrade", b"websocket"),
                (b"connection", b"Upgrade"),
                (b"sec-websocket-version", b"13"),
                (b"sec-websocket-key", self._frames.key.encode()),
                *offered,
            )
        ]
        self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await self._handshake

    async def receive(self) -> str | bytes | Closed:
        """The next message. After `Closed` there is none."""
        while not self._received:
            self._arrived.clear()
            if self._transport is not None:
                self._transport.resume_reading()
            await self._arrived.wait()
        return self._received.popleft()

    async def send(self, message: str | bytes) -> None:
        """Returns when there is room for the next one. What the instance cannot read any more is dropped."""
        if self._frames.state is OPEN:
            if isinstance(message, str):
                self._frames.send_text(message.encode())
            else:
                self._frames.send_binary(message)
            self._flush()
        await self._writable.wait()

    async def close(self, code: int = NO_STATUS, reason: str = "") -> None:
        """Close it, and wait until the instance has done so too. Does nothing when it is closed already."""
        if self._frames.state is OPEN:
            if code == NO_STATUS:
                self._frames.send_close()
            else:
                self._frames.send_close(code, reason)
            self._flush()
        self._received.clear()
        if self._transport is not None:
            self._transport.resume_reading()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), CLOSE_S)
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        with contextlib.suppress(Exception):
            self._frames.receive_eof()
        self._handle_events()
        if not self._handshake.done():
            self._fail(ConnectionBroken(str(exc or "") or "the connection was closed during the handshake"))
        self._put(Closed(ABNORMAL, ""))
        self._writable.set()
        self._ended.set()

    def data_received(self, data: bytes) -> None:
        self._frames.receive_data(data)
        if self._frames.reader.buffer:  # a part of a frame
            self.active_at = self._clock.now()
        self._handle_events()
        self._flush()
        if self._frames.parser_exc is not None:
            self._put(Closed(ABNORMAL, ""))
            self.abort()

    def eof_received(self) -> None:
        with contextlib.suppress(Exception):
            self._frames.receive_eof()
        self._handle_events()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- events ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        for data in self._frames.data_to_send():
            if self._transport is None or self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _handle_events(self) -> None:
        for event in self._frames.events_received():
            if isinstance(event, Response):
                self._handle_response(event)
            elif isinstance(event, Frame):
                self._handle_frame(event)
        error = self._frames.handshake_exc
        if error is not None and not self._handshake.done():
            self._fail(ConnectionBroken(f"the handshake failed: {error}"))

    def _handle_response(self, response: Response) -> None:
        headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in response.headers.raw_items()]
        if self._handshake.done():
            return
        error = self._frames.handshake_exc
        if response.status_code != 101:
            self._fail(HandshakeDeclined(response.status_code, headers, bytes(response.body or b"")))
        elif isinstance(error, InvalidHandshake):
            self._fail(ConnectionBroken(f"the handshake failed: {error}"))
        else:
            self.headers = [header for header in headers if header[0] not in _HANDSHAKE]
            self.subprotocol = self._frames.subprotocol
            self._handshake.set_result(None)

    def _handle_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text, self._parts = frame.opcode is Opcode.TEXT, [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
        elif frame.opcode is Opcode.CLOSE and self._frames.close_rcvd is not None:
            self._put(Closed(int(self._frames.close_rcvd.code), self._frames.close_rcvd.reason))
            return
        else:
            return
        self.active_at = self._clock.now()
        if frame.fin:
            data = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
            self._parts = []
            self._put(data.decode() if self._is_text else data)

    def _put(self, message: str | bytes | Closed) -> None:
        self._received.append(message)
        self._arrived.set()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _fail(self, error: Exception) -> None:
        if not self._handshake.cancelled():
            self._handshake.set_exception(error)
            self._handshake.exception()  # whoever waited may be gone
