"""One kept connection to an instance: a request goes out, its answer comes in, one at a time.

The client's half of what uvicorn is for the server: httptools parses, the event loop carries, and in between is only what a
proxy needs. No redirects, cookies, decompression or second tries, which is why it costs a fifth of a general HTTP client's
time per request. A body waits while the other side does not read, in both directions. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httptools

from deployments.types import Body, Headers, SentHeaders

_MOST_UNREAD = 256 * 1024  # bytes of an answer that wait for their reader; then the instance waits
_MOST_HEAD = 1024 * 1024  # bytes of an answer's head
_NO_BODY = frozenset((204, 304))


class NotConnected(Exception):
    """No connection was made: the instance has certainly not seen the request."""


class ConnectionBroken(Exception):
    """The connection ended after the request may have been seen."""


class InstanceRequest:
    """`headers` have their names in lower case. Raises ValueError for a head that would be read as more lines than it has."""

    __slots__ = ("body", "chunked", "head", "method")

    def __init__(self, method: str, path: str, headers: Headers, body: Body, host: str) -> None:
        """`host`: for a Host header where there is none."""
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
    """An instance's response: the head is here, the body follows in pieces. Close it, whatever happens."""

    __slots__ = ("_complete", "_connection", "_failure", "_pieces", "_unread", "_wanted", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = 0
        self.headers: Headers = ()
        self._pieces: list[bytes] = []
        self._unread = 0
        self._complete = False
        self._failure: ConnectionBroken | None = None
        self._wanted: asyncio.Future[None] | None = None  # somebody waits for more, or for the end

    async def pieces(self) -> AsyncIterator[bytes]:
        """Body as it arrives. Raises ConnectionBroken when it ends early, after what had arrived."""
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
        """The body if all of it has arrived already, else None: most answers are one packet."""
        return self._take() if self._complete else None

    def close(self) -> None:
        """The connection of an answer that was not read to its end is closed: the instance sees a departure."""
        if not self._complete:
            self._connection.abort()

    def _take(self) -> bytes:
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._unread = 0
        if not self._complete:
            self._connection.read_on()
        return piece

    # --- told by the connection -----------------------------------------------------------------------------------

    def more(self, piece: bytes) -> bool:
        """Returns whether that is enough for now."""
        self._pieces.append(piece)
        self._unread += len(piece)
        self._wake()
        return self._unread > _MOST_UNREAD

    def ends(self, failure: ConnectionBroken | None = None) -> None:
        self._complete, self._failure = failure is None, failure
        self._wake()

    def check(self) -> None:
        """Raises ConnectionBroken when there is no head, and never will be."""
        if self._failure is not None and not self.status:
            raise self._failure

    def _wake(self) -> None:
        if self._wanted is not None:
            if not self._wanted.done():
                self._wanted.set_result(None)
            self._wanted = None


class Connection(asyncio.Protocol):
    """`idle` is called whenever it can take another request, `lost` when it no longer can."""

    def __init__(self, idle: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle, self._lost = idle, lost
        self._transport: Any = None
        self._parser: Any = None
        self._answer: InstanceResponse | None = None  # what is being received
        self._heard: asyncio.Future[None] | None = None  # while the answer's head is waited for
        self._headers: SentHeaders = []
        self._head_bytes = 0
        self._interim = False  # a 1xx head, which is not the answer's
        self._stray = False  # something came that nobody asked for
        self._without_body = False  # the request was a HEAD
        self._until_close = False  # nothing but the connection's end tells where the body ends
        self._sender: asyncio.Task[None] | None = None  # of a body that is streamed
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: InstanceRequest) -> InstanceResponse:
        """The answer's head. Raises NotConnected when the connection ended before anything was sent, else ConnectionBroken."""
        if not self.usable:
            raise NotConnected("the connection was closed before the request")
        answer = self._answer = InstanceResponse(self)
        heard = self._heard = self._loop.create_future()
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
            await heard
        except BaseException:
            if self._answer is answer:  # else all of it has arrived, and the connection may be another request's by now
                self.abort()
            raise
        answer.check()
        return answer

    def abort(self) -> None:
        """Nothing more is sent or read. An answer that was being received is not told."""
        self._answer = self._heard = None
        self._stop_sending()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """For one that is idle."""
        self._transport.close()

    def read_on(self) -> None:
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
        except Exception as error:  # whatever the body's source raises: the request is not whole and never will be
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

    # --- receiving an answer --------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()  # nobody asked
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the answer is not HTTP: {error}")
            return
        if self._heard is not None and self._head_bytes > _MOST_HEAD:
            self._fail(f"the answer's head has more than {_MOST_HEAD} bytes")
        elif self._stray:
            self.abort()  # or it would be taken for the answer to the next request

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        self._writable.set()
        if self._until_close and error is None:
            self._complete()
        else:
            self._fail(str(error) if error else "the connection was closed")

    def _fail(self, why: str) -> None:
        """The answer that is being received ends here, and with it the connection."""
        answer, heard = self._answer, self._heard
        self.abort()
        if answer is not None:
            answer.ends(ConnectionBroken(why))
            if heard is not None and not heard.done():
                heard.set_result(None)

    def _complete(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.read_on()
        answer.ends()
        reusable = self._parser.should_keep_alive() and self._sender is None and self.usable
        if self._without_body:
            self._parser = None  # it waits for the body that the head announces
        if reusable:
            self._idle(self)
        else:
            self.abort()  # also when the request's body is not wanted to its end

    # --- the parser's callbacks -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._stray = self._answer is None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._heard is not None:  # else a trailer
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim or self._answer is None or self._heard is None:
            self._headers = []
            return
        answer, heard, self._heard = self._answer, self._heard, None
        answer.status, answer.headers = status, self._headers
        if not heard.done():
            heard.set_result(None)
        if self._without_body:
            self._complete()
        else:
            self._until_close = status not in _NO_BODY and not _is_framed(self._headers)

    def on_body(self, piece: bytes) -> None:
        if self._answer is None:
            self._stray = True
        elif self._answer.more(piece) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete()


def _is_framed(headers: Headers) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, value in headers)
