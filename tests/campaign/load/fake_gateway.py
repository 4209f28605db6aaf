"""A small server that answers as a gateway with the campaign's agent behind it, or with bytes that a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from tests.campaign.load.answers import PIECES

NO_HEADERS: Mapping[str, str] = {}
PID, CODE, COOKIE = 4711, "code1", "swiftclaw-session=abc"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeGateway:
    """`answer`: the bytes of each response. `keeps`: connections are kept open after a response."""

    def __init__(self, answer: Callable[[Asked], bytes] | None = None, keeps: bool = True) -> None:
        self._answer, self._keeps = answer or self.agent, keeps
        self._turns: Counter[str] = Counter()
        self.asked: list[Asked] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeGateway]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(0)  # in which they end

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
            try:
                kept = True
                while kept:
                    writer.write(self._answer(await self._read(reader)))
                    await writer.drain()
                    kept = self._keeps
            except ValueError:
                writer.write(response("no request", 400))
                await writer.drain()
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Asked:
        """Raises ValueError for what is no request."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append(Asked(method, path, headers, body))
        return self.asked[-1]

    def agent(self, asked: Asked) -> bytes:
        """What the agent of agent_code.py answers."""
        if "/items/" in asked.path:
            name = asked.path.rpartition("/")[2].split("?")[0]
            item = {"id": name, "pid": PID, "code": CODE, "method": asked.method, "body": asked.body.decode()}
            return response(item)
        content = json.loads(asked.body)
        message = json.loads(content["messages"][0]["content"]) if "messages" in content else content["message"]
        self._turns[message.get("conversation", "")] += 1
        reply = f"{message['id']}|{PID}|{CODE}|{self._turns[message.get('conversation', '')]}"
        if content.get("stream"):
            return stream([f"{number}:{reply};" for number in range(message["pieces"])])
        if "messages" in content:
            return response({"choices": [{"message": {"content": reply}}]})
        return response({"reply": reply}, headers={"x-swiftclaw-instance": "instance-1", "set-cookie": f"{COOKIE}; Path=/"})


def response(content: object, status: int = 200, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
    body = json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} -", f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(deltas: list[str], last: str = "data: [DONE]\n\n") -> bytes:
    """Server-sent events in chunks, up to `last`."""
    events = [f"data: {json.dumps({'delta': delta})}\n\n" for delta in deltas] + [last]
    chunks = [f"{len(event):x}\r\n{event}\r\n" for event in events]
    return ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + "".join(chunks) + "0\r\n\r\n").encode()


def pieces(name: str, count: int = PIECES) -> list[str]:
    return [f"{number}:{name}|{PID}|{CODE}|0;" for number in range(count)]
