"""One kept connection to an instance: one request at a time, and its response.

The client's counterpart of a server: httptools parses, the event loop carries, and between them is only what a proxy needs. No
redirects, cookies, decompression or retries, which is why a request costs a fifth of what a general HTTP client takes. What
arrives is passed to a `Receiver` in the callback that it arrived in; `ask` is for callers that rather await it. In both
directions a body waits while the other side does not read. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Any, Protocol

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


class Streamed:
    """In place of a whole body: its pieces are sent with `Connection.send_piece`."""


STREAMED = Streamed()
RequestBody = Body | Streamed


class InstanceRequest:
    """One request, ready to be written. Header names are in lower case.

    Raises ValueError for a line break within a header: the head would have more lines than it should.
    """

    __slots__ = ("body", "chunked", "head", "method")

    def __init__(self, method: str, path: str, headers: Headers, body: RequestBody, host: str) -> None:
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


class Receiver(Protocol):
    """Who gets a response: its head, its pieces and its end, or why it broke off. All in the callback of the event loop."""

    def response_head(self, status: int, headers: SentHeaders) -> None: ...
    def response_piece(self, piece: bytes) -> None: ...
    def response_end(self) -> None: ...
    def response_broken(self, why: str) -> None: ...
    def response_passed_on(self) -> None:
        """All that has arrived so far was passed on."""

    def instance_writable(self) -> None:
        """The instance reads again: more of the request's body may be sent."""


class Discarding:
    """The receiver of a response that nobody wants."""

    def response_head(self, status: int, headers: SentHeaders) -> None: ...
    def response_piece(self, piece: bytes) -> None: ...
    def response_end(self) -> None: ...
    def response_broken(self, why: str) -> None: ...
    def response_passed_on(self) -> None: ...
    def instance_writable(self) -> None: ...


_DISCARDING = Discarding()


class InstanceResponse:
    """An instance's response: the head is complete, the body follows in pieces. Always close it."""

    __slots__ = ("_complete", "_connection", "_failure", "_head", "_paused", "_pieces", "_unread", "_wanted", "_writable",
                 "headers", "status")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._head = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self._paused = False
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
        if self._paused:
            self._paused = False
            self._connection.resume_reading()
        return piece

    async def received_head(self) -> None:
        """Raises ConnectionBroken when the connection ended before the head was complete."""
        await self._head
        if self._failure is not None and not self.status:
            raise self._failure

    async def writable(self) -> None:
        """Returns when the instance reads the request's body."""
        while not self._connection.writable:
            self._writable.clear()
            await self._writable.wait()

    # --- the receiver -----------------------------------------------------------------------------------------------

    def response_head(self, status: int, headers: SentHeaders) -> None:
        self.status, self.headers = status, headers
        if not self._head.done():
            self._head.set_result(None)

    def response_piece(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._unread += len(piece)
        self._wake()
        if self._unread > _MAX_UNREAD and not self._paused:
            self._paused = True
            self._connection.pause_reading()

    def response_end(self) -> None:
        self._complete = True
        self._wake()

    def response_broken(self, why: str) -> None:
        self._failure = ConnectionBroken(why)
        self._writable.set()
        if not self._head.done():
            self._head.set_result(None)
        self._wake()

    def response_passed_on(self) -> None: ...

    def instance_writable(self) -> None:
        self._writable.set()

    def _wake(self) -> None:
        if self._wanted is not None:
            if not self._wanted.done():
                self._wanted.set_result(None)
            self._wanted = None


class Connection(asyncio.Protocol):
    """`idle` is called each time the connection can take another request, `lost` when it no longer can."""

    def __init__(self, idle: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self._idle, self._lost = idle, lost
        self._transport: Any = None
        self._parser: Any = None
        self._receiver: Receiver | None = None  # of the response that is being received
        self._in_head = False  # the response's head is not complete
        self._headers: SentHeaders = []
        self._head_bytes = 0
        self._interim = False  # a 1xx head: the response follows
        self._stray = False  # data arrived without a request
        self._reusable = False  # a response has just ended, and the connection can take another request
        self._without_body = False  # the request was a HEAD
        self._until_close = False  # the body ends with the connection
        self._sending = False  # the request's body is not complete
        self._chunked = False  # it has no length
        self._sender: asyncio.Task[None] | None = None  # of a body that `ask` sends
        self._paused = False
        self.writable = True  # False: the instance does not read what was sent; `instance_writable` follows

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
        return ConnectionState.IDLE if self._receiver is None else ConnectionState.ACTIVE

    @property
    def usable(self) -> bool:
        """Neither NEW nor CLOSED."""
        return self._transport is not None and not self._transport.is_closing()

    # --- a request ------------------------------------------------------------------------------------------------

    def send(self, request: InstanceRequest, receiver: Receiver) -> None:
        """Send a request; of one without a whole body, `send_piece` and `end_body` follow."""
        self._receiver = receiver
        self._in_head, self._headers, self._head_bytes = True, [], 0
        self._without_body, self._until_close = request.method == "HEAD", False
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        body = request.body
        if body is None:
            self._sending = False
            self._transport.write(request.head)
        elif isinstance(body, bytes):
            self._sending = False
            self._transport.write(request.head + body)
        else:
            self._sending, self._chunked = True, request.chunked
            self._transport.write(request.head)

    def send_piece(self, piece: bytes) -> None:
        """A piece of the request's body. While `writable` is False, no more should be sent."""
        if piece and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)

    def end_body(self) -> None:
        self._sending = False
        if self._chunked and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")

    async def ask(self, request: InstanceRequest) -> InstanceResponse:
        """Send a request and wait for the response head.

        Raises NotConnected when the connection was closed before anything was sent, and ConnectionBroken afterwards.
        """
        if not self.usable:
            raise NotConnected("the connection was closed before the request")
        response = InstanceResponse(self)
        self.send(request, response)
        if self._sending:
            body: Any = request.body
            self._sender = asyncio.get_running_loop().create_task(self._send(body, response))
        try:
            await response.received_head()
        except BaseException:
            if self._receiver is response:  # else it is complete, and the connection may already serve another request
                self.abort()
            raise
        return response

    async def _send(self, body: AsyncIterator[bytes], response: InstanceResponse) -> None:
        try:
            async for piece in body:
                self.send_piece(piece)
                await response.writable()
            self.end_body()
        except Exception as error:  # from the body's source: the request cannot be completed
            self._sender = None
            self._fail(f"the body ended early: {error!r}")
        else:
            self._sender = None

    def discard(self) -> None:
        """Nobody wants the response, whose head has just arrived. Only one that is complete with it spares the connection."""
        if self._receiver is not None:
            self._receiver = _DISCARDING

    def abort(self) -> None:
        """Close at once. A response that is being received is dropped without a failure."""
        self._receiver = None
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    def pause_reading(self) -> None:
        """The receiver is behind."""
        if not self._paused and self.usable:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The receiver has caught up."""
        if self._paused and self.usable:
            self._paused = False
            self._transport.resume_reading()

    # --- the event loop's callbacks -----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._receiver is not None:
            self._receiver.instance_writable()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.abort()  # data without a request
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the response is not valid HTTP: {error}")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD:
                self._fail(f"the response head has more than {_MAX_HEAD} bytes")
                return
        if self._stray or self._receiver is _DISCARDING:
            self.abort()  # or the data would count as the response to the next request
        elif self._reusable:
            self._reusable = False
            self._idle(self)
        receiver.response_passed_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        if self._until_close and error is None:
            receiver = self._receiver
            self._complete()
            if receiver is not None:
                receiver.response_passed_on()
        else:
            self._fail(str(error) if error else "the connection was closed")

    def _fail(self, why: str) -> None:
        """Break off the response that is being received, and close the connection."""
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.response_broken(why)

    def _complete(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        self.resume_reading()
        reusable = self._parser.should_keep_alive() and not self._sending and self.usable
        if self._without_body:
            self._parser = None  # it still expects the body that the head announced
        if reusable:
            self._reusable = True  # once all of the data has been looked at: nothing may follow the response
        else:
            self.abort()  # also when the instance answered before it had the whole request body
        receiver.response_end()

    # --- parser callbacks -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._stray = self._receiver is None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim or self._receiver is None or not self._in_head:
            self._headers = []
            return
        self._in_head = False
        headers = self._headers
        self._until_close = not self._without_body and status not in _NO_BODY and not _is_framed(headers)
        self._receiver.response_head(status, headers)
        if self._without_body:
            self._complete()

    def on_body(self, piece: bytes) -> None:
        if self._receiver is None:
            self._stray = True
        else:
            self._receiver.response_piece(piece)

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete()


def _is_framed(headers: Headers) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, value in headers)
