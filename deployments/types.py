"""The types that every room of the data plane speaks of: ASGI's three, header lists, and a request's body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Headers = Sequence[tuple[bytes, bytes]]  # to read
SentHeaders = list[tuple[bytes, bytes]]  # to build: what goes out with a request or a response
Body = bytes | AsyncIterator[bytes] | None  # whole, streamed, or none
