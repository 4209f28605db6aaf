"""uvicorn's HTTP protocol with limits: what may one connection cost, and where does a request end?

uvicorn waits forever for a request's head and for a client that does not read its response, and starts a request before
its framing has been checked. Here a head has a deadline (slowloris), an unread response ends the connection, and a head whose
end could be understood in two ways (RFC 9112, sections 3.2, 6.1 and 6.3; request smuggling) is rejected and the connection
closed, as HAProxy and Envoy do. One sweep a second covers all connections: no timer per request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cluster.transport.request_head import RequestRejected, check_handshake, check_head, without_upgrade
from cluster.transport.running_clock import running_clock

log = logging.getLogger("swiftclaw.connections")

_UNTIL_CLOSE = 2**63  # the length of a response that has none
PIPELINED = 64  # requests waiting for their response on one connection
TOO_MANY_PIPELINED = f"too many pipelined requests on this connection (at most {PIPELINED})"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds, bytes and counts for one connection."""

    head_s: float = 10.0  # from connecting, or from a head's first byte, to the end of the head
    keep_alive_s: float = 75.0  # idle time between two requests
    unread_s: float = 60.0  # time without the client reading any of its response
    head_bytes: int = 128 * 1024
    header_count: int = 256
    target_bytes: int = 16 * 1024  # the parser's own limit is 65535

    @property
    def sweep_s(self) -> float:
        return min(1.0, min(self.head_s, self.keep_alive_s, self.unread_s) / 4)


class Http10Cycle(RequestResponseCycle):
    """A response to HTTP/1.0: without a length it ends with the connection, because chunks are not known there."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding, self.expected_content_length = False, _UNTIL_CLOSE
        elif not message.get("more_body") and self.expected_content_length > _UNTIL_CLOSE // 2:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class LimitedHttpProtocol(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, limits: ConnectionLimits, on_rejected: Callable[[int], None], **uvicorns: Any) -> None:
        """`on_rejected` is called with the status of each rejected request: the application never sees those."""
        super().__init__(**uvicorns)
        self._limits, self._on_rejected = limits, on_rejected
        self._clock = running_clock()
        self.until = math.inf  # the running clock's time when `expire` is due
        self._in_head = False  # a head has begun and is incomplete
        self._in_body = False  # a head is complete, and its message has not ended
        self._overhead = 0  # bytes since the last head or body data
        self._declined = False  # a head asks for a protocol that is not supported
        self._deaf = False  # all further input is dropped
        self._rejected: RequestRejected | None = None
        self._running: Any = None  # the request that is being answered; `cycle` is the newest one received

    @property
    def _busy(self) -> bool:
        return self._running is not None and not self._running.response_complete

    # --- the connection -------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pipeline.clear()
        self._disconnect()  # uvicorn notifies the newest request only
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._overhead += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                data = self._upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                self._reject(self._rejected or RequestRejected(400, f"invalid HTTP: {error}"))
                return
        if self._overhead > self._limits.head_bytes:
            status, what = (400, "the framing of the chunked body") if self._in_body else (431, "the request head")
            self._reject(RequestRejected(status, f"{what} exceeds {self._limits.head_bytes} bytes"))

    def expire(self) -> None:
        """The connection's deadline has passed."""
        self.until = math.inf
        if self._in_head:
            self._reject(RequestRejected(408, f"timed out: the request head was not complete within {self._limits.head_s:g} s"))
        else:
            self._deaf = True
            self.transport.close()

    def _wait(self, seconds: float) -> None:
        self.until = self._clock.now() + seconds

    def _disconnect(self) -> None:
        if self._busy:
            self._running.disconnected = True
            self._running.message_event.set()
            self.flow.resume_writing()

    def _reject(self, rejected: RequestRejected) -> None:
        """Stop reading. Earlier requests are answered first: an error never cuts into another response."""
        self._deaf = True
        self._on_rejected(rejected.status)
        if not self._busy:
            if not self._in_body:  # else its response is complete
                self.transport.write(rejected.answer(with_body=self.parser.get_method() != b"HEAD"))
            self.transport.close()
        elif self._in_body and self.cycle is self._running:
            if not self._running.response_started:
                self.transport.write(rejected.answer())
            self._disconnect()
            self.transport.close()
        else:
            if self._in_body:
                self.pipeline.popleft()  # the newest one has the invalid body
            last = self.pipeline[0][0] if self.pipeline else self._running
            last.keep_alive = False

    # --- the parser's callbacks -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._wait(self._limits.head_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer must not become a header (RFC 9110, section 6.5.1)
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        try:
            self._check_head()
        except RequestRejected as rejected:
            self._rejected = rejected
            raise
        version = self.parser.get_http_version()
        self._declined = self.parser.should_upgrade() and (version == "1.0" or not self._should_upgrade())
        if self._declined:
            return
        if version == "1.0":  # has no 1xx responses
            self.expect_100_continue = False
        super().on_headers_complete()
        self._in_head, self._in_body, self._overhead = False, True, 0
        self.until = math.inf
        if (
            self.expect_100_continue and not self.parser.should_upgrade()
        ):  # if answered without "100 Continue", a body may follow or not
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._declined:
            return
        super().on_message_complete()
        self._in_body, self._overhead = False, 0
        if not self._busy:
            self._wait(self._limits.keep_alive_s)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.__class__ = Http10Cycle  # uvicorn makes the cycles itself
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._in_head:
            self._wait(self._limits.head_s if self._in_body else self._limits.keep_alive_s)

    def _check_head(self) -> None:
        """Raises RequestRejected for a head that is not supported or could be understood in two ways."""
        version, method = self.parser.get_http_version(), self.parser.get_method()
        limits = self._limits
        if len(self.pipeline) >= PIPELINED:
            raise RequestRejected(400, TOO_MANY_PIPELINED)
        self.url = check_head(
            version, method, self.url, self.headers, target_bytes=limits.target_bytes, header_count=limits.header_count
        )
        if version == "1.1" and self.parser.should_upgrade() and self._should_upgrade():
            check_handshake(method, self.headers)

    # --- other protocols ------------------------------------------------------------------------------------------

    def _upgrade(self, rest: bytes) -> bytes:
        """The data to parse next. `rest`: what follows the head that asks for another protocol."""
        if self._declined:
            return self._without_upgrade() + rest
        if rest or self._busy:
            self._reject(RequestRejected(400, "no other data or request may overlap a WebSocket handshake"))
            return b""
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.handle_websocket_upgrade()
        protocol: Any = self.transport.get_protocol()
        if not protocol.handshake_initiated:  # the handshake is invalid, and it would wait forever
            self._on_rejected(400)
            self.transport.write(RequestRejected(400, "invalid WebSocket handshake").answer())
            self.transport.close()
        return b""

    def _without_upgrade(self) -> bytes:
        """The head again, for a new parser: this one takes all that follows, even the body, for the other protocol.

        Otherwise `Upgrade: h2c` with a Content-Length would be forwarded without its body.
        """
        head = without_upgrade(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head


class DeadlineSweeper:
    """Enforces the deadlines of all connections of one server, WebSockets included. `now` is the running clock's."""

    def __init__(self, connections: Collection[Any], limits: ConnectionLimits) -> None:
        self._connections, self._limits = connections, limits
        self._unsent: dict[Any, tuple[int, float]] = {}  # unsent bytes, and since when the client has read none

    def sweep(self, now: float) -> None:
        unsent = {}
        for connection in list(self._connections):
            if now >= getattr(connection, "until", math.inf):  # a WebSocket has none
                connection.expire()
            size = connection.transport.get_write_buffer_size()
            if not size:
                continue
            size_before, since = self._unsent.get(connection, (size, now))
            if size != size_before:  # also when it grew: nothing is written while the client does not read
                since = now
            if now - since > self._limits.unread_s:
                log.info("closed a connection: the client did not read its response for %g s", self._limits.unread_s)
                connection.transport.abort()  # close() would wait for the client
            else:
                unsent[connection] = (size, since)
        self._unsent = unsent
