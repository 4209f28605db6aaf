"""When does a WebSocket's ping count as unanswered? Not while this process could not read the answer."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from cluster.transport import websocket_protocol
from cluster.transport.listener import Listener, bind

PONG_S = 0.6


async def app(scope, receive, send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The connections that were closed for want of a pong. Pings follow each other quickly."""
    closed: list[str] = []

    def quick(self: WebSocketsSansIOProtocol) -> None:
        self.ping_timer = self.loop.call_later(0.1, self.send_keepalive_ping)

    def close(self: WebSocketsSansIOProtocol) -> None:
        closed.append("closed")

    monkeypatch.setattr(WebSocketsSansIOProtocol, "schedule_ping", quick)
    monkeypatch.setattr(WebSocketsSansIOProtocol, "keepalive_timeout", close)
    monkeypatch.setattr(websocket_protocol, "unacknowledged_bytes", lambda socket: 0)
    return closed


async def opened(autoping: bool, seconds: float) -> None:
    listener = Listener(app, bind("127.0.0.1", 0), grace_s=0, ws_ping_timeout_s=PONG_S)
    await listener.start()
    async with aiohttp.ClientSession() as client:
        socket = await client.ws_connect(f"http://127.0.0.1:{listener.port}/", autoping=autoping)
        reading = asyncio.create_task(socket.receive())
        await asyncio.sleep(0.15)  # the first ping is on its way, or answered
        time.sleep(seconds)  # noqa: ASYNC251
        await asyncio.sleep(0.1)
        if not seconds:
            await asyncio.sleep(2 * PONG_S)
        reading.cancel()
        socket._response.close()
    await listener.close()


async def test_a_client_is_not_given_up_because_this_process_was_paused(ended: list[str]) -> None:
    await opened(autoping=False, seconds=2 * PONG_S)
    assert ended == []


async def test_a_client_that_does_not_answer_pings_is_given_up(ended: list[str]) -> None:
    await opened(autoping=False, seconds=0)
    assert ended


async def test_a_client_that_answers_is_kept(ended: list[str]) -> None:
    await opened(autoping=True, seconds=0)
    assert ended == []
