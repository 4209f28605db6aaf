"""One request and its response: headers, body, and what can interrupt it.

A client that disconnects and a deadline that passes both cancel the one task that serves the request, so that every
`finally` block runs and no count is left behind.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from random import getrandbits
from typing import Any, Protocol

from cluster.messages import Member
from cluster.transport import sse
from cluster.transport.running_clock import LEAST_SLEEP_S, RunningClock, running_clock
from deployments.request import openai
from deployments.types import Body, Headers, Receive, Scope, Send, SentHeaders
from policies.errors import BadRequest, PayloadTooLarge, SwiftClawError

WATCH_AFTER_S = 0.02  # most responses are faster, and need no task that watches for a disconnect
READ_AHEAD = 64 * 1024  # bodies up to this size are read before an instance is chosen
CLIENT_DISCONNECTED = "client_gone"  # in place of a named error
_GOOD_ID = re.compile(rb"[!-~]{1,128}")


class ClientDisconnected(Exception):
    """The client closed its connection before the response was complete."""


class DeadlineExceeded(Exception):
    """The deadline passed."""


class _Moved(Exception):
    """The attempt was abandoned; another instance will be tried."""


class RequestObserver(Protocol):
    """Follows one request through the gateway, for its access log line or its trace; the edge attaches it.

    Per attempt: `queued` if the request had to wait, `attempt_started`, `attempt_ended`. Then `ended`, once.
    """

    def queued(self, now: float) -> None:
        """The request entered the wait queue."""

    def attempt_started(self, exchange: Exchange, instance: Member, now: float, headers: SentHeaders) -> SentHeaders:
        """The request is about to be sent to `instance`. Returns the headers to send, which may be `headers` themselves."""
        ...

    def attempt_ended(self, status: int | None, ok: bool | None, first_byte_at: float | None) -> None:
        """`status` None: no response arrived. `ok` False: the instance failed; None: the attempt proves nothing."""

    def ended(self, exchange: Exchange) -> None:
        """The response is complete, or the client has disconnected."""


class Exchange:
    """`headers` are the client's, names in lower case."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self.scope = scope
        self.receive, self.send = receive, send
        self._max_body = max_body
        self.method: str = scope.get("method", "GET")
        self.path: bytes = scope["raw_path"]
        self.headers: SentHeaders = scope["headers"]
        self.started_at = time.monotonic()
        self.started = False  # the response head was sent
        self.status = 0
        self.event_stream = False
        self.is_openai = self.path.startswith(b"/v1/") or self.path == b"/v1"  # errors have OpenAI's shape
        self.prefix = b""  # the part of the body that was read before an instance was chosen
        self.response_headers: SentHeaders = []  # added to the response, whichever it will be
        self.agent: str | None = None  # the agent that it addresses, once known
        self.counted = False  # in the tally of an instance
        self.failure: str | None = None  # type of the error it ended with, or CLIENT_DISCONNECTED
        self.observers: tuple[RequestObserver, ...] = ()
        self.trace_id: str | None = None  # of the gateway's own span; None: this process makes none
        client_id = self.header(b"x-request-id")
        self.request_id = client_id.decode() if client_id and _GOOD_ID.fullmatch(client_id) else f"{getrandbits(128):032x}"
        self._body_done = scope.get("type") == "websocket"  # its messages follow the handshake
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._clock: RunningClock | None = None
        self._ends_at = 0.0
        self.client_left = False  # and the mounted app has learned of it
        self._late = False  # has run longer than WATCH_AFTER_S
        self._interrupted: type[Exception] | None = None
        self.body_failure: Exception | None = None  # why a streamed body ended early
        self.on_cancelled: Callable[[], None] | None = None  # nobody waits for the response any more

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None

    # --- the body -------------------------------------------------------------------------------------------------

    def check_length(self) -> int | None:
        """Content-Length; 0 without a body, None when it is chunked. Raises BadRequest, PayloadTooLarge."""
        if self.header(b"transfer-encoding") is not None:
            return None
        text = self.header(b"content-length")
        if text is None:
            return 0
        if not text.isdigit():
            raise BadRequest("content-length: must be a number")
        length = int(text)
        if length > self._max_body:
            raise PayloadTooLarge(f"the request body has {length} bytes; at most {self._max_body} are allowed")
        return length

    async def body(self, *, ahead: bool = False) -> Body:
        """A small body whole, so that it can be sent again; a large one, or one of unknown length, as a stream.

        `ahead`: first read the beginning of a stream into `prefix`; if that is all of it, the body is whole.
        """
        length = self.check_length()
        if length == 0:
            await self._piece()
            return None
        if length is not None and length <= READ_AHEAD:
            self.prefix = await self.whole_body()
            return self.prefix
        if not ahead:
            return self._pieces()
        first = bytearray()
        while len(first) < READ_AHEAD and not self._body_done:
            first += (await self._piece())[0]
        self.prefix = bytes(first)
        return self.prefix if self._body_done else self._after(self.prefix)

    async def _after(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        async for piece in self._pieces(len(first)):
            yield piece

    async def whole_body(self) -> bytes:
        """The body in memory. Raises PayloadTooLarge above the body limit."""
        first, more = await self._piece()
        if not more:
            return first
        pieces = [first]
        async for piece in self._pieces(len(first)):
            pieces.append(piece)
        return b"".join(pieces)

    async def _pieces(self, so_far: int = 0) -> AsyncIterator[bytes]:
        more = not self._body_done
        while more:
            try:
                piece, more = await self._piece()
                so_far += len(piece)
                if so_far > self._max_body:
                    raise PayloadTooLarge(f"the request body has more than the {self._max_body} bytes allowed")
            except (ClientDisconnected, PayloadTooLarge) as error:
                self.body_failure = error  # the connection that reads this generator reports another error
                raise
            if piece:
                yield piece

    async def _piece(self) -> tuple[bytes, bool]:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        more = message.get("more_body", False)
        if not more:
            self._body_done = True
            if self._late and self._task is not None:
                self._watch_client()
        return message.get("body", b""), more

    # --- interruptions ------------------------------------------------------------------------------------------

    def guard(self, seconds: float) -> None:
        """Interrupt this task when the client disconnects (ClientDisconnected) or time runs out (DeadlineExceeded)."""
        self._task, self._clock = asyncio.current_task(), running_clock()
        self.deadline(seconds)

    def deadline(self, seconds: float) -> None:
        """Set the time that is left from now, in place of the previous deadline. Without `guard` it has no effect."""
        if self._task is None or self._clock is None:
            return
        now = self._clock.now()
        earlier = now + seconds < self._ends_at
        self._ends_at = now + seconds
        if self._timer is None:
            self._wake(seconds)
        elif earlier:
            self._timer.cancel()
            self._wake(seconds)

    def _wake(self, seconds: float) -> None:
        if not self._late:
            seconds = min(seconds, WATCH_AFTER_S)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._late = True
        if self._body_done:
            self._watch_client()
        if self._clock is None:
            return
        left = self._ends_at - self._clock.now()
        if left <= 0.001:
            self._interrupt(DeadlineExceeded)
        else:
            self._wake(max(left, LEAST_SLEEP_S))

    def _watch_client(self) -> None:
        if self._watch is None:
            self._watch = asyncio.ensure_future(self.receive())
            self._watch.add_done_callback(self._disconnected)

    def _disconnected(self, watch: asyncio.Task[Any]) -> None:
        if not watch.cancelled() and watch.exception() is None:
            self._interrupt(ClientDisconnected)

    def _interrupt(self, why: type[Exception]) -> None:
        if self._task is None or self._interrupted not in (None, _Moved):
            return
        cancelled, self._interrupted = self._interrupted is not None, why
        if self.on_cancelled is not None and why is not _Moved:
            self.on_cancelled()
        if not cancelled:
            self._task.cancel()

    def move(self) -> None:
        """Cancel the current attempt but not the request: see `moved`."""
        if self._interrupted is None:
            self._interrupt(_Moved)

    def moved(self) -> bool:
        """In `except CancelledError`: True when `move` caused it, and the task continues."""
        if self._interrupted is not _Moved:
            return False
        self.interruption()
        self._interrupted = None
        return True

    @property
    def timed_out(self) -> bool:
        return self._interrupted is DeadlineExceeded

    def interruption(self) -> Exception | None:
        """In `except CancelledError`: the cause, or None when the task was cancelled from outside."""
        if self._interrupted is None:
            return None
        if self._task is not None:
            uncancel(self._task)
        return self._interrupted()

    def done(self) -> None:
        """Stop the interruptions."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.cancel()

    # --- the response -----------------------------------------------------------------------------------------------

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        self.status = status
        self.event_stream = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, piece: bytes, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": piece, "more_body": more})

    async def answer(self, status: int, body: object, headers: Headers = ()) -> None:
        """Send a complete response of this process: JSON, which may be encoded already, or text for a str."""
        text = isinstance(body, str)
        content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        await self.start(
            status,
            [
                (b"content-type", b"text/plain; charset=utf-8" if text else b"application/json"),
                (b"content-length", str(len(content)).encode()),
                (b"x-request-id", self.request_id.encode()),
                *self.response_headers,
                *headers,
            ],
        )
        await self.write(content, more=False)

    async def end_broken(self, error: SwiftClawError) -> None:
        """After the head was sent: an event stream ends with the error; any other response ends short, as clients notice."""
        if self.event_stream:
            await self.write(sse.encode(json.dumps(self.error(error)), name="error"), more=False)

    def error(self, error: SwiftClawError) -> dict[str, Any]:
        if self.is_openai:
            return openai.error_body(error, self.request_id)
        body: dict[str, Any] = {
            "type": error.type,
            "message": error.message,
            "agent": error.agent,
            "request_id": self.request_id,
        }
        return {"error": body if error.detail is None else {**body, "detail": error.detail}}


def uncancel(task: asyncio.Task[Any]) -> None:
    """Take back a cancellation that was meant for the awaited work and not for the task (Python 3.11 and later)."""
    undo = getattr(task, "uncancel", None)
    if undo is not None:
        undo()
