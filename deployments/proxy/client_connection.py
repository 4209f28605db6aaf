"""One client's connection to the public port: which requests arrive on it, and their responses on the wire.

httptools parses, the event loop carries. A head has a deadline (slowloris), an unread response ends the connection
(`DeadlineSweeper`), a head whose end could be understood in two ways is rejected (cluster/transport/request_head.py). Requests
on one connection are answered one after another; a WebSocket's handshake is handed to its own protocol. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from cluster.transport.http_protocol import PIPELINED, TOO_MANY_PIPELINED, ConnectionLimits
from cluster.transport.request_head import RequestRejected, check_handshake, check_head, without_upgrade
from cluster.transport.running_clock import running_clock
from deployments.proxy.client import Arrived, ClientSide, RequestSide
from deployments.types import Headers, SentHeaders

log = logging.getLogger("swiftclaw.gateway")

_WITHOUT_BODY = frozenset((204, 304))
_STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus}


Receive = Callable[[Arrived, ClientSide], RequestSide]


class _Turn:
    """One request on the connection, and how its response is framed."""

    __slots__ = ("body_ended", "chunked", "continues", "head_only", "held", "http10", "keep_alive", "request", "started")

    def __init__(self, request: RequestSide, *, head_only: bool, http10: bool, keep_alive: bool, continues: bool) -> None:
        self.request = request
        self.head_only, self.http10, self.keep_alive = head_only, http10, keep_alive
        self.continues = continues  # the client waits for "100 Continue" before it sends the body
        self.held: list[bytes] = []  # of the body, while it waits for its turn
        self.body_ended = False
        self.started = False  # the response's head was written
        self.chunked = False


class ClientConnection(asyncio.Protocol):
    """A `ClientSide` for the request whose turn it is."""

    def __init__(
        self,
        receive: Receive,
        limits: ConnectionLimits,
        on_rejected: Callable[[int], None],
        *,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
    ) -> None:
        """`receive` makes the request of what arrived. `on_rejected` is called with the status of each request that it never
        sees. The rest is uvicorn's, for WebSockets."""
        self._receive, self._limits, self._on_rejected = receive, limits, on_rejected
        self._config, self._server_state, self._app_state = config, server_state, app_state
        self._clock = running_clock()
        self.transport: Any = None
        self.until = math.inf  # the running clock's time when `expire` is due
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int | None] | None = None
        self._scheme = "http"
        self._parser = self._new_parser()
        self._url = b""
        self._headers: SentHeaders = []
        self._expects_continue = False
        self._in_head = False  # a head has begun and is incomplete
        self._in_body = False  # a head is complete, and its message has not ended
        self._overhead = 0  # bytes since the last head or body data
        self._declined = False  # a head asks for a protocol that is not supported
        self._deaf = False  # all further input is dropped
        self._rejected: RequestRejected | None = None
        self._turn: _Turn | None = None  # being answered
        self._newest: _Turn | None = None  # whose body is being received
        self._queue: deque[_Turn] = deque()  # requests that wait for their turn
        self._silence_s = limits.keep_alive_s
        self._out: list[bytes] = []
        self._write_paused = False
        self._body_paused = self._read_paused = False

    def __repr__(self) -> str:
        state = "answering" if self._turn else "in a head" if self._in_head else "idle"
        return f"<ClientConnection from {self._client}: {state}, {len(self._queue)} waiting>"

    # --- the event loop's callbacks -----------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._client, self._server = get_remote_addr(transport), get_local_addr(transport)
        self._scheme = "https" if is_ssl(transport) else "http"
        self._server_state.connections.add(self)
        self._wait(self._limits.head_s)

    def connection_lost(self, error: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._deaf = True
        self._queue.clear()
        self._leave()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._overhead += len(data)
        while data:
            try:
                self._parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                data = self._upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                if not self._deaf:
                    self._reject(self._rejected or RequestRejected(400, f"invalid HTTP: {error}"))
                return
        if self._overhead > self._limits.head_bytes and not self._deaf:
            status, what = (400, "the framing of the chunked body") if self._in_body else (431, "the request head")
            self._reject(RequestRejected(status, f"{what} exceeds {self._limits.head_bytes} bytes"))

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._turn is not None:
            self._turn.request.client_paused()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._turn is not None:
            self._turn.request.client_resumed()
        else:
            self._begin_next()
            self._resume_reading()

    def expire(self) -> None:
        """The connection's deadline has passed."""
        self.until = math.inf
        if self._in_head:
            self._reject(RequestRejected(408, f"timed out: the request head was not complete within {self._limits.head_s:g} s"))
        else:
            self._deaf = True
            self.transport.close()

    def shutdown(self) -> None:
        """The server stops: the request under way is the last one."""
        self._end_after_newest()

    def _end_after_newest(self) -> None:
        """Close the connection after the newest request, at once if there is none."""
        newest = self._queue[-1] if self._queue else self._turn
        if newest is None:
            self.transport.close()
        else:
            newest.keep_alive = False

    def _wait(self, seconds: float) -> None:
        self.until = self._clock.now() + seconds

    def _leave(self) -> None:
        """The request under way learns that its client is gone."""
        turn, self._turn = self._turn, None
        if turn is not None and not turn.request.ended:
            turn.request.client_left()

    def _reject(self, rejected: RequestRejected) -> None:
        """Stop reading. Earlier requests are answered first: an error never cuts into another response."""
        self._deaf = True
        self._on_rejected(rejected.status)
        turn = self._turn
        if turn is None and not self._queue:
            if not self._in_body:  # else its response is complete
                self.transport.write(rejected.answer(with_body=self._parser.get_method() != b"HEAD"))
            self.transport.close()
        elif turn is not None and self._in_body and self._newest is turn:
            if not turn.started:
                self.transport.write(rejected.answer())
            self._leave()
            self.transport.close()
        else:
            if self._in_body:
                self._queue.pop()  # the newest one has the invalid body
            self._end_after_newest()

    # --- the parser's callbacks -----------------------------------------------------------------------------------

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def on_message_begin(self) -> None:
        self._url, self._headers, self._expects_continue = b"", [], False
        self._in_head = True
        self._wait(self._limits.head_s)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer must not become a header (RFC 9110, section 6.5.1)
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        parser, limits = self._parser, self._limits
        version, method = parser.get_http_version(), parser.get_method()
        try:
            if len(self._queue) >= PIPELINED:
                raise RequestRejected(400, TOO_MANY_PIPELINED)
            self._url = check_head(
                version, method, self._url, self._headers, target_bytes=limits.target_bytes, header_count=limits.header_count
            )
            upgrades = parser.should_upgrade()
            if upgrades:
                upgrades = version != "1.0" and self._is_websocket()
                self._declined = not upgrades
                if self._declined:
                    return
                check_handshake(method, self._headers)
        except RequestRejected as rejected:
            self._rejected = rejected
            raise
        self._in_head, self._in_body, self._overhead = False, True, 0
        self.until = math.inf
        if upgrades:
            self._newest = None  # the end of this message is not that of the request before
            return
        http10 = version == "1.0"
        path, _, query = self._url.partition(b"?")
        arrived = Arrived(method.decode("ascii"), path, query, self._headers, version, self._scheme, self._client, self._server)
        request = self._receive(arrived, self)
        continues = self._expects_continue and not http10  # HTTP/1.0 has no 1xx responses
        turn = self._newest = _Turn(
            request,
            head_only=method == b"HEAD",
            http10=http10,
            # If answered without "100 Continue", a body may follow or not.
            keep_alive=not http10 and not continues and parser.should_keep_alive(),
            continues=continues,
        )
        if self._turn is None and not self._write_paused:
            self._begin(turn)
        else:  # another one is being answered, or the client has not read the answers so far
            self._queue.append(turn)
            self._pause_reading()

    def on_body(self, piece: bytes) -> None:
        self._overhead = 0
        turn = self._newest
        if turn is None or self._deaf:
            return
        if turn is not self._turn:
            if turn in self._queue:
                turn.held.append(piece)
            return  # else it was answered before its body was complete
        if not turn.request.ended:
            turn.request.body_piece(piece)

    def on_message_complete(self) -> None:
        if self._declined or self._deaf:
            return
        self._in_body, self._overhead = False, 0
        turn = self._newest
        if turn is not None:
            turn.body_ended = True
            if turn is self._turn and not turn.request.ended:
                turn.request.body_end()
        if self._turn is None and not self._queue and not self._deaf:
            self._wait(self._silence_s)

    # --- turns ----------------------------------------------------------------------------------------------------

    def _begin(self, turn: _Turn) -> None:
        self._turn = turn
        request = turn.request
        request.begin()
        for piece in turn.held:
            if not request.ended:
                request.body_piece(piece)
        turn.held.clear()
        if turn.body_ended and not request.ended and self._turn is turn:
            request.body_end()

    def _begin_next(self) -> None:
        if self._queue and self._turn is None and not self._write_paused:
            self._begin(self._queue.popleft())

    def done(self) -> None:
        """The response is complete, or broken off."""
        turn, self._turn = self._turn, None
        self._server_state.total_requests += 1
        if turn is None or self.transport.is_closing():
            return
        if not turn.keep_alive:
            self._deaf = True
            self.transport.close()
            return
        self._silence_s = turn.request.idle_s or self._limits.keep_alive_s
        self._body_paused = False
        if self._queue:
            self._begin_next()
        elif not self._in_head:
            self._wait(self._limits.head_s if self._in_body else self._silence_s)
        self._resume_reading()

    # --- the request's body -----------------------------------------------------------------------------------------

    def want_body(self) -> None:
        turn = self._turn
        if turn is not None and turn.continues and not turn.started:
            turn.continues = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_body(self) -> None:
        self._body_paused = True
        self._pause_reading()

    def resume_body(self) -> None:
        self._body_paused = False
        self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused and not self._queue and not self._body_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    # --- the response -----------------------------------------------------------------------------------------------

    def respond(self, status: int, headers: Headers) -> None:
        turn = self._turn
        if turn is None:
            return
        turn.started = True
        out = self._out
        out.append(_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status)
        for name, value in self._server_state.default_headers:  # the date
            out.append(b"%b: %b\r\n" % (name, value))
        with_length = closing = False
        for name, value in headers:
            out.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                with_length = True
            elif name == b"connection" and value.lower() == b"close":
                turn.keep_alive, closing = False, True
        if not with_length and not turn.head_only and status not in _WITHOUT_BODY:
            if turn.http10:
                turn.keep_alive = False  # it ends with the connection: chunks are not known there
            else:
                turn.chunked = True
                out.append(b"transfer-encoding: chunked\r\n")
        elif status in _WITHOUT_BODY:
            turn.head_only = True
        out.append(b"\r\n" if turn.keep_alive or closing else b"connection: close\r\n\r\n")

    def write(self, piece: bytes) -> None:
        turn = self._turn
        if turn is None or turn.head_only or not piece:
            return
        if turn.chunked:
            self._out.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        else:
            self._out.append(piece)

    def flush(self) -> None:
        out = self._out
        if out:
            if not self.transport.is_closing():
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def finish(self) -> None:
        turn = self._turn
        if turn is not None and turn.chunked:
            self._out.append(b"0\r\n\r\n")
        self.flush()

    def break_off(self) -> None:
        self.flush()
        if self._turn is not None:
            self._turn.keep_alive = False

    # --- other protocols ------------------------------------------------------------------------------------------

    def _is_websocket(self) -> bool:
        connection: list[bytes] = []
        upgrade = b""
        for name, value in self._headers:
            if name == b"connection":
                connection = [token.lower().strip() for token in value.split(b",")]
            elif name == b"upgrade":
                upgrade = value.lower()
        return b"upgrade" in connection and upgrade == b"websocket"

    def _upgrade(self, rest: bytes) -> bytes:
        """The data to parse next. `rest`: what follows the head that asks for another protocol."""
        if self._declined:
            self._declined = False
            return self._without_upgrade() + rest
        if rest or self._turn is not None or self._queue:
            self._in_body = False
            self._reject(RequestRejected(400, "no other data or request may overlap a WebSocket handshake"))
            return b""
        if self._expects_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._server_state.connections.discard(self)
        lines = [b"%b %b HTTP/1.1" % (self._parser.get_method(), self._url), *(b"%b: %b" % header for header in self._headers)]
        protocol = self._config.ws_protocol_class(
            config=self._config, server_state=self._server_state, app_state=self._app_state
        )
        protocol.connection_made(self.transport)
        protocol.data_received(b"\r\n".join(lines) + b"\r\n\r\n")
        self.transport.set_protocol(protocol)
        if not protocol.handshake_initiated:  # the handshake is invalid, and it would wait forever
            self._on_rejected(400)
            self.transport.write(RequestRejected(400, "invalid WebSocket handshake").answer())
            self.transport.close()
        return b""

    def _without_upgrade(self) -> bytes:
        """The head again, for a new parser: this one takes all that follows, even the body, for the other protocol.

        Otherwise `Upgrade: h2c` with a Content-Length would be forwarded without its body.
        """
        head = without_upgrade(self._parser.get_method(), self._url, self._parser.get_http_version(), self._headers)
        self._parser = self._new_parser()
        return head
