"""Server-sent events: written by agents' streams and the admin port, parsed for in-process callers and model clients.

No I/O. Comments and `retry` are not parsed. Source: WHATWG HTML, section 9.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# `x-accel-buffering`: nginx, and proxies that follow it, pass each event on as it arrives.
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"  # the last event of a complete stream, as in OpenAI's API


class ServerEvent(NamedTuple):
    data: bytes
    name: bytes = b"message"


def encode(data: str, *, name: str | None = None, id: int | None = None) -> bytes:
    """One event. `data`: a single line, as JSON is."""
    head = f"id: {id}\n" if id is not None else ""
    if name is not None:
        head += f"event: {name}\n"
    return f"{head}data: {data}\n\n".encode()


class EventParser:
    """Feed it the stream in pieces of any size. Splits bytes: a piece may end in the middle of a character."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._name = b"message"

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that are complete with this piece."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                yield event

    def end(self) -> Iterator[ServerEvent]:
        """At the end of the stream: an incomplete event is dropped, but `[DONE]` counts without its empty line."""
        if self._rest:
            self._line(self._rest.rstrip())
        if self._data == [b"[DONE]"]:
            yield ServerEvent(b"[DONE]", self._name)

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            event = ServerEvent(b"\n".join(self._data), self._name) if self._data else None
            self._data, self._name = [], b"message"
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None
