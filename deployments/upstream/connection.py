"""One kept connection to an instance: one request at a time, and its response.

The client's counterpart of uvicorn: httptools parses, the event loop carries, and between them is only what a proxy needs. No
redirects, cookies, decompression or retries, which is why a request costs a fifth of what a general HTTP client takes. In both
directions a body waits while the other side does not read. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Any

import httptools

from deployments.types import Body, Headers, SentHeaders

_MAX_UNREAD = 256 * 1024  # bytes of a response that may wait for their reader; beyond it, reading from the instance pauses
_MAX_HEAD = 1024 * 1024  # bytes of a response head
_NO_BODY = frozenset((204, 304))


class NotConnected(Exception):
    """The connection could not be made: the instance has certainly not received the request."""


class ConnectionBroken(Exception):
    """The connection ended after the instance may have received the request."""


class ConnectionState(Enum):
    """Of a connection, as in httpcore."""

    NEW = "connecting"
    ACTIVE = "active"
    IDLE = "idle"
    CLOSED = "closed"


class InstanceRequest:
    """One request, ready to be written. Header names are in lower case.

    Raises ValueError for a line break within a header: the head would have more lines than it should.
    """

    __slots__ = ("body", "chunked", "head", "method")

    def __init__(self, method: str, path: str, headers: Headers, body: Body, host: str) -> None:
        """`host`: the Host header, unless `headers` has one."""
        self.method, self.body = method, body
        lines = [f"{method} {path} HTTP/1.1".encode("latin-1")]
        has_host = has_length = False
        for name, value in headers:
            lines.append(b"%b: %b" % (name, value))
            if name == b"host":
                has_host = True
            elif name == b"content-length":
                has_length = True
        if not has_host:
            lines.append(b"host: " + host.encode())
        self.chunked = not has_length and body is not None and not isinstance(body, bytes)
        if self.chunked:
            lines.append(b"transfer-encoding: chunked")
        elif isinstance(body, bytes) and not has_length:
            lines.append(b"content-length: %d" % len(body))
        self.head = b"\r\n".join(lines) + b"\r\n\r\n"
        if not len(lines) + 1 == self.head.count(b"\r") == self.head.count(b"\n"):
            raise ValueError("a line break within a header")


class InstanceResponse:
    """An instance's response: the head is complete, the body follows in pieces. Always close it."""

    __slots__ = ("_complete", "_connection", "_failure", "_pieces", "_unread", "_wanted", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = 0
        self.headers: Headers = ()
        self._pieces: list[bytes] = []
        self._unread = 0
        self._complete = False
        self._failure: ConnectionBroken | None = None
        self._wanted: asyncio.Future[None] | None = None  # pending while a reader waits for more, or for the end

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ConnectionBroken when it ends early, after the pieces that did arrive."""
        while True:
            if self._pieces:
                yield self._take()
            elif self._failure is not None:
                raise self._failure
            elif self._complete:
                return
            else:
                self._wanted = asyncio.get_running_loop().create_future()
                await self._wanted

    def whole(self) -> bytes | None:
        """The complete body if it has arrived, else None. Most responses are one packet."""
        return self._take() if self._complete else None

    @property
    def ended(self) -> bool:
        """Whether the body has arrived and was taken."""
        return self._complete and not self._pieces

    def close(self) -> None:
        """Close the connection if the response was not read to its end: the instance sees a disconnect."""
        if not self._complete:
            self._connection.abort()

    def _take(self) -> bytes:
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._unread = 0
        if not self._complete:
            self._connection.resume_reading()
        return piece

    # --- called by the connection ---------------------------------------------------------------------------------

    def more(self, piece: bytes) -> bool:
        """Add a piece of the body. Returns True when the connection should pause reading."""
        self._pieces.append(piece)
        self._unread += len(piece)
        self._wake()
        return self._unread > _MAX_UNREAD

    def end(self, failure: ConnectionBroken | None = None) -> None:
        """Complete the response, or break it off with `failure`."""
        self._complete, self._failure = failure is None, failure
        self._wake()

    def check(self) -> None:
        """Raises ConnectionBroken when the connection ended before the head was complete."""
        if self._failure is not None and not self.status:
            raise self._failure

    def _wake(self) -> None:
        if self._wanted is not None:
            if not self._wanted.done():
                self._wanted.set_result(None)
            self._wanted = None


class Connection(asyncio.Protocol):
    """`idle` is called each time the connection can take another request, `lost` when it no longer can."""

    def __init__(self, idle: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle, self._lost = idle, lost
        self._transport: Any = None
        self._parser: Any = None
        self._response: InstanceResponse | None = None  # the one that is being received
        self._head: asyncio.Future[None] | None = None  # pending until the response head is complete
        self._headers: SentHeaders = []
        self._head_bytes = 0
        self._interim = False  # a 1xx head: the response follows
        self._stray = False  # data arrived without a request
        self._without_body = False  # the request was a HEAD
        self._until_close = False  # the body ends with the connection
        self._sender: asyncio.Task[None] | None = None  # of a streamed request body
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False

    def __repr__(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"<Connection to {peer[0]}:{peer[1]}: {self.state.value}>" if peer else f"<Connection: {self.state.value}>"

    @property
    def state(self) -> ConnectionState:
        """Derived from what the connection holds: a field would have to be kept for each request."""
        if self._transport is None:
            return ConnectionState.NEW
        if self._transport.is_closing():
            return ConnectionState.CLOSED
        return ConnectionState.IDLE if self._response is None else ConnectionState.ACTIVE

    @property
    def usable(self) -> bool:
        """Neither NEW nor CLOSED."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: InstanceRequest) -> InstanceResponse:
        """Send a request and wait for the response head.

        Raises NotConnected when the connection was closed before anything was sent, and ConnectionBroken afterwards.
        """
        if not self.usable:
            raise NotConnected("the connection was closed before the request")
        response = self._response = InstanceResponse(self)
        head = self._head = self._loop.create_future()
        self._without_body, self._until_close = request.method == "HEAD", False
        self._headers, self._head_bytes = [], 0
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        if isinstance(request.body, bytes):
            self._transport.write(request.head + request.body)
        else:
            self._transport.write(request.head)
            if request.body is not None:
                self._sender = self._loop.create_task(self._send(request.body, request.chunked))
        try:
            await head
        except BaseException:
            if self._response is response:  # else it is complete, and the connection may already serve another request
                self.abort()
            raise
        response.check()
        return response

    def abort(self) -> None:
        """Close at once. A response that is being received is dropped without a failure."""
        self._response = self._head = None
        self._stop_sending()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    def resume_reading(self) -> None:
        """The reader has caught up."""
        if self._paused and self.usable:
            self._paused = False
            self._transport.resume_reading()

    # --- sending a body -------------------------------------------------------------------------------------------

    async def _send(self, body: AsyncIterator[bytes], chunked: bool) -> None:
        try:
            async for piece in body:
                if piece:
                    self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    await self._writable.wait()
            if chunked:
                self._transport.write(b"0\r\n\r\n")
        except Exception as error:  # from the body's source: the request cannot be completed
            self._sender = None
            self._fail(f"the body ended early: {error!r}")
        else:
            self._sender = None

    def _stop_sending(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- receiving a response --------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            self.abort()  # data without a request
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the response is not valid HTTP: {error}")
            return
        if self._head is not None and self._head_bytes > _MAX_HEAD:
            self._fail(f"the response head has more than {_MAX_HEAD} bytes")
        elif self._stray:
            self.abort()  # or the data would count as the response to the next request

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        self._writable.set()
        if self._until_close and error is None:
            self._complete()
        else:
            self._fail(str(error) if error else "the connection was closed")

    def _fail(self, why: str) -> None:
        """Break off the response that is being received, and close the connection."""
        response, head = self._response, self._head
        self.abort()
        if response is not None:
            response.end(ConnectionBroken(why))
            if head is not None and not head.done():
                head.set_result(None)

    def _complete(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        self.resume_reading()
        response.end()
        reusable = self._parser.should_keep_alive() and self._sender is None and self.usable
        if self._without_body:
            self._parser = None  # it still expects the body that the head announced
        if reusable:
            self._idle(self)
        else:
            self.abort()  # also when the instance answered before it had the whole request body

    # --- parser callbacks -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._stray = self._response is None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:  # else a trailer
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim or self._response is None or self._head is None:
            self._headers = []
            return
        response, head, self._head = self._response, self._head, None
        response.status, response.headers = status, self._headers
        if not head.done():
            head.set_result(None)
        if self._without_body:
            self._complete()
        else:
            self._until_close = status not in _NO_BODY and not _is_framed(self._headers)

    def on_body(self, piece: bytes) -> None:
        if self._response is None:
            self._stray = True
        elif self._response.more(piece) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete()


def _is_framed(headers: Headers) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, value in headers)
