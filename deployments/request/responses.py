"""Short ASGI responses: a status without a body, a WebSocket that is not accepted, and the headers of an error."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from deployments.types import Headers, Scope, Send, SentHeaders
from policies.errors import SwiftClawError


async def send_empty(send: Send, status: int) -> None:
    headers = [] if status == 204 else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def deny_websocket(
    scope: Scope, send: Send, status: int, headers: Headers = (), body: bytes = b"", reason: str = ""
) -> None:
    """Answer the handshake with `status`; a server that cannot do that closes the WebSocket with `reason` instead."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now: `Retry-After` in seconds or as a date, or OpenAI's `retry-after-ms`. `headers`: names of any case."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def retry_after(error: SwiftClawError) -> SentHeaders:
    """`Retry-After` in whole seconds, at least 1, if the error has a time."""
    if error.retry_after_s is None:
        return []
    return [(b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode())]
