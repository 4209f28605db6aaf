"""A request by Serve handle, in the shape of one over HTTP, so that every rule of the edge applies to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from cluster.transport import sse
from deployments.types import Message, Scope


class InProcessRequest:
    """`scope`, `receive` and `send` for the edge; `pieces()` yields the response body."""

    def __init__(self, agent: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        path = f"/agents/{agent}/messages"
        self.status = 0
        self._request: bytes | None = content
        self._left = asyncio.Event()
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)  # a slow reader slows the instance
        self._all: list[bytes] = []
        self._queued = bool(body.get("stream"))
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "client": None,
            "headers": [
                (b"host", b"inside"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
            ],
        }

    async def receive(self) -> Message:
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if self._left.is_set():
            return
        if self._queued:
            await self._pieces.put(message["body"])
            if not message.get("more_body"):
                await self._pieces.put(None)
        else:
            self._all.append(message["body"])

    def content(self) -> bytes:
        return b"".join(self._all)

    def leave(self) -> None:
        """Disconnect. A `send` that waits for space in the queue returns."""
        self._left.set()
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            yield piece


async def events(call: InProcessRequest) -> AsyncIterator[tuple[str, Any]]:
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
