"""A small HTTP client for paced requests and streams. It keeps what arrives with its time; the figures are made afterwards.

Times are `time.monotonic_ns()`. A connection has one request at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

BROKEN = 0  # the status of a request that got no whole answer


@dataclass(frozen=True)
class Target:
    """Where a request is sent, and the headers that it needs there."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    def request(self, body: bytes) -> bytes:
        """A POST of that JSON, as it is sent."""
        parts = urlsplit(self.url)
        lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Answer:
    """`pieces`: of the body, each with the time at which it arrived. `ended_ns` is 0 until the answer is whole."""

    sent_ns: int
    status: int = BROKEN
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    ended_ns: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class Connection(asyncio.Protocol):
    """One connection; `usable` until the server closes it."""

    def __init__(self) -> None:
        self.usable = False
        self._answer = Answer(0)
        self._done: asyncio.Future[None] | None = None
        self._now = 0

    @classmethod
    async def open(cls, target: Target) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, *target.address)
        return connection

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Send it and wait for the end of the answer. A failure is an answer with the status BROKEN."""
        done = self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        answer = self._answer = Answer(time.monotonic_ns())
        self._transport.write(request)
        try:
            await asyncio.wait_for(done, timeout_s)
        except (OSError, httptools.HttpParserError, asyncio.TimeoutError):
            answer.status = BROKEN
            self.close()
        return answer

    def close(self) -> None:
        self.usable = False
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self.usable = True

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic_ns()
        if self._done is None:  # an answer that no request asked for
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._fail(error or ConnectionResetError("closed by the server"))

    # httptools

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._answer.pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        self._answer.ended_ns = self._now
        if not self._parser.should_keep_alive():
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
