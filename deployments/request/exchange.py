"""One request and its response: headers, body, and what can interrupt it.

A client that disconnects and a deadline that passes both cancel the one task that serves the request, so that every
`finally` block runs and no count is left behind.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

from cluster.transport import sse
from cluster.transport.running_clock import LEAST_SLEEP_S, RunningClock, running_clock
from deployments.request.record import RequestRecord
from deployments.types import Headers, Receive, Scope, Send
from policies.errors import PayloadTooLarge, SwiftClawError

WATCH_AFTER_S = 0.02  # most responses are faster, and need no task that watches for a disconnect


class ClientDisconnected(Exception):
    """The client closed its connection before the response was complete."""


class DeadlineExceeded(Exception):
    """The deadline passed."""


class Exchange(RequestRecord):
    """A request that a server passes to an ASGI application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        super().__init__(
            scope.get("method", "GET"),
            scope["raw_path"],
            scope.get("query_string", b""),
            scope["headers"],
            scheme="https" if scope.get("scheme") in ("https", "wss") else "http",
            client=scope.get("client"),
            server=scope.get("server"),
            http_version=scope.get("http_version", "1.1"),
            max_body=max_body,
        )
        self.scope = scope
        self.receive, self.send = receive, send
        self._body_done = scope.get("type") == "websocket"  # its messages follow the handshake
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._clock: RunningClock | None = None
        self._ends_at = 0.0
        self.client_left = False  # and the mounted app has learned of it
        self._late = False  # has run longer than WATCH_AFTER_S
        self._interrupted: type[Exception] | None = None
        self.on_cancelled: Callable[[], None] | None = None  # nobody waits for the response any more

    # --- the body -------------------------------------------------------------------------------------------------

    async def whole_body(self) -> bytes:
        """The body in memory. Raises PayloadTooLarge above the body limit."""
        pieces, size, more = [], 0, True
        while more:
            piece, more = await self._piece()
            pieces.append(piece)
            size += len(piece)
            if size > self.max_body:
                raise PayloadTooLarge(f"the request body has more than the {self.max_body} bytes allowed")
        return b"".join(pieces)

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

    def guard(self, seconds: float = math.inf) -> None:
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
        elif left < math.inf:
            self._wake(max(left, LEAST_SLEEP_S))

    def _watch_client(self) -> None:
        if self._watch is None:
            self._watch = asyncio.ensure_future(self.receive())
            self._watch.add_done_callback(self._disconnected)

    def _disconnected(self, watch: asyncio.Task[Any]) -> None:
        if not watch.cancelled() and watch.exception() is None:
            self._interrupt(ClientDisconnected)

    def _interrupt(self, why: type[Exception]) -> None:
        if self._task is None or self._interrupted is not None:
            return
        self._interrupted = why
        if self.on_cancelled is not None:
            self.on_cancelled()
        self._task.cancel()

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


def uncancel(task: asyncio.Task[Any]) -> None:
    """Take back a cancellation that was meant for the awaited work and not for the task (Python 3.11 and later)."""
    undo = getattr(task, "uncancel", None)
    if undo is not None:
        undo()
