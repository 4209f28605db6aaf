"""A WebSocket conversation: five messages, each answered by its own text, half a second apart."""

from __future__ import annotations

import asyncio
import socket as sockets
import time
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Close

from tests.campaign.load.answers import read_error, read_headers
from tests.campaign.load.http import Answer
from tests.campaign.record import Request

MESSAGES = 5
NO_CLOSE = "the WebSocket ended without a close frame"


async def talk(
    request: Request, uri: str, leave_after: int = MESSAGES, open_timeout: float = 30.0, pause_s: float = 0.5
) -> None:
    """Its outcome is in the request. With `leave_after`, the client drops the connection after so many messages."""
    request.method = "WS"
    try:
        raw = await _connected(uri)
        request.client_port = raw.getsockname()[1]  # also of a handshake that fails
        async with connect(uri, sock=raw, open_timeout=open_timeout, ping_interval=None, proxy=None, close_timeout=5) as socket:
            headers = dict(socket.response.headers.raw_items()) if socket.response else {}
            read_headers(request, Answer(101, {name.lower(): value for name, value in headers.items()}, "", time.monotonic()))
            for number in range(MESSAGES):
                if number == leave_after:
                    socket.transport.abort()
                    request.outcome = "left"
                    return
                await socket.send(str(number))
                name, pid, request.code, text = str(await socket.recv()).split("|")
                request.pid, request.pieces = int(pid), number + 1
                if (name, text) != (request.id, str(number)):
                    request.outcome, request.message = "wrong", f"{name} {text}"
                    return
                await asyncio.sleep(pause_s)
            await socket.close()
            _read_close(request, socket.protocol.close_rcvd)
    except InvalidStatus as error:
        request.status = error.response.status_code
        read_error(request, (error.response.body or b"").decode(errors="replace"))
    except ConnectionClosed as error:
        _read_close(request, error.rcvd)
    except (OSError, InvalidHandshake, EOFError, ValueError) as error:
        request.outcome, request.message = "broken", f"{type(error).__name__}: {error}"


async def _connected(uri: str) -> sockets.socket:
    place = urlsplit(uri)
    raw = sockets.socket()
    raw.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(raw, (place.hostname, place.port))
    except BaseException:
        raw.close()
        raise
    return raw


def _read_close(request: Request, close: Close | None) -> None:
    """By the other side's close frame: 1000 answers that of the client."""
    if close is None:
        request.outcome, request.message = "broken", NO_CLOSE
    elif close.code == 1000 and request.pieces == MESSAGES:
        request.outcome = "ok"
    else:
        request.outcome, request.error = "error", f"ws-{close.code}"
        request.message, request.midway = close.reason, True
