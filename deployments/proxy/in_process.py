"""A request by Serve handle: a client within the process, so that every rule of the edge applies to it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from cluster.transport import sse
from deployments.proxy.client import Arrived, ClientSide, RequestSide
from deployments.types import Headers

_MOST_UNREAD = 16  # pieces of a response that wait for their reader; beyond it, the instance is not read


class InProcessClient:
    """A `ClientSide`. `pieces()` yields the response body; `whole()` is all of it. Needs a running event loop."""

    def __init__(self, agent: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        named = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        own = [(b"host", b"inside"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        self._arrived = Arrived("POST", f"/agents/{agent}/messages".encode(), b"", [*own, *named], "1.1", "http", None, None)
        self._content = content
        self._request: RequestSide | None = None
        self._pieces: deque[bytes] = deque()
        self._paused = False
        self._over = False
        self._changed = asyncio.Event()
        self.status = 0

    def send(self, receive: Callable[[Arrived, ClientSide], RequestSide]) -> None:
        """Send the request, once. `receive`: the edge's."""
        request = self._request = receive(self._arrived, self)
        request.begin()
        if not request.ended:
            request.body_piece(self._content)
        if not request.ended:
            request.body_end()

    def leave(self) -> None:
        """Disconnect."""
        if self._request is not None and not self._request.ended:
            self._request.client_left()
        self._over = True

    async def whole(self) -> bytes:
        """The response body. To be cancelled is to leave."""
        try:
            return b"".join([piece async for piece in self.pieces()])
        finally:
            self.leave()

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._over:
                return
            if self._paused and self._request is not None:
                self._paused = False
                self._request.client_resumed()
            self._changed.clear()
            if not self._pieces and not self._over:
                await self._changed.wait()

    # --- the client's side --------------------------------------------------------------------------------------------

    def respond(self, status: int, headers: Headers) -> None:
        self.status = status

    def write(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def flush(self) -> None:
        self._changed.set()
        if len(self._pieces) > _MOST_UNREAD and not self._paused and self._request is not None:
            self._paused = True
            self._request.client_paused()

    def finish(self) -> None:
        self._changed.set()

    def break_off(self) -> None:
        self._changed.set()

    def done(self) -> None:
        self._over = True
        self._changed.set()

    def want_body(self) -> None: ...
    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...


async def events(call: InProcessClient) -> AsyncIterator[tuple[str, Any]]:
    """("delta", text) for each event of the stream; ("error", JSON) when the request was refused or the stream broke."""
    parser, refusal = sse.EventParser(), b""
    async for piece in call.pieces():
        if call.status != 200:
            refusal += piece
            continue
        for event in parser.feed(piece):
            if event.name == b"error":
                yield "error", json.loads(event.data)
            elif event.data != b"[DONE]":
                yield "delta", json.loads(event.data)["delta"]
    if call.status != 200:
        yield "error", {**json.loads(refusal), "status": call.status}
