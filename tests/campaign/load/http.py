"""HTTP/1.1 by hand: the client sees every byte, and knows at any moment what has been sent and what has arrived."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET

REUSE_S = 3.0  # a connection that was idle for longer is not used again: it may be about to be closed


class Broken(Exception):
    """The connection ended before the answer did."""


# What a broken connection looks like, and an answer that is not HTTP.
FAILURES = (Broken, OSError, EOFError, ValueError, asyncio.LimitOverrunError)


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    first_byte: float = 0.0
    longest_gap: float = 0.0  # between two pieces of a chunked body


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self._used_at = reader, writer, time.monotonic()
        self.fresh = True  # nothing has been exchanged
        self.port = int(writer.get_extra_info("sockname")[1])

    @classmethod
    async def open(cls, port: int, limit: int = 1 << 16) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit))

    @property
    def reusable(self) -> bool:
        return time.monotonic() - self._used_at < REUSE_S and not self.ended

    @property
    def ended(self) -> bool:
        """By the other side, or by this one."""
        return self.reader.at_eof() or self.writer.is_closing()

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.close()

    def reset(self) -> None:
        """End it with a TCP reset: what has not been sent is dropped."""
        with contextlib.suppress(OSError):
            socket = self.writer.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def exchange(self, request: bytes, answer: Answer) -> None:
        self.writer.write(request)
        await self.read_head(answer)
        await self.read_body(answer)
        self.fresh, self._used_at = False, time.monotonic()

    async def read_head(self, answer: Answer) -> None:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise Broken(f"no answer ({len(error.partial)} bytes of one)") from None
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        answer.status, answer.first_byte = int(first.split(" ")[1]), time.monotonic()
        answer.headers.update((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))

    async def read_body(self, answer: Answer) -> None:
        """What has arrived is in the answer, even if the rest does not."""
        if answer.headers.get("transfer-encoding") != "chunked":
            length = int(answer.headers.get("content-length", 0))
            answer.text = (await self.reader.readexactly(length)).decode()
            return
        body, last = b"", time.monotonic()
        try:
            while size := int((await self.reader.readuntil(b"\r\n")).strip() or b"0", 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
                answer.longest_gap, last = max(answer.longest_gap, time.monotonic() - last), time.monotonic()
            await self.reader.readexactly(2)
        finally:
            answer.text = body.decode(errors="replace")


def request_bytes(method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: chaos", *(f"{name}: {value}" for name, value in headers.items())]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
