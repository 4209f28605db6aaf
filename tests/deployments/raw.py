"""A client that says exactly what it is told to say, byte for byte, and reads what comes back with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

PATIENCE_S = 10.0


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self, seconds: float = PATIENCE_S) -> bytes:
        """All that comes until the other side closes. Raises TimeoutError when it does not."""
        heard = bytearray()
        try:
            while piece := await asyncio.wait_for(self.reader.read(65536), seconds):
                heard += piece
        except ConnectionError:
            pass
        return bytes(heard)

    async def response(self, seconds: float = PATIENCE_S) -> Response:
        """One whole response; the connection stays as it is."""
        return await asyncio.wait_for(self._response(), seconds)

    async def _response(self) -> Response:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Response(int(head[0].split(" ")[1]), headers, body)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
