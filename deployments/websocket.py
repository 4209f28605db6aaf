"""One WebSocket through the gateway: two pumps between the client and one instance, until either side ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from cluster.messages import REFUSED_HEADER
from deployments.exchange import Exchange, Receive, Send
from deployments.forward import Call, Forwarder
from deployments.routing import CLIENT_GONE, Routing
from deployments.sessions import set_cookie
from deployments.upstream import BrokeOff, NotConnected, Upstream
from policies.errors import InstanceFailed, RequestTimeout

GOING_AWAY, INTERNAL_ERROR, NO_STATUS = 1001, 1011, 1005


class WebSocketForwarder:
    """Counts a WebSocket as one request for as long as it is open."""

    def __init__(self, routing: Routing, upstream: Upstream, forwarder: Forwarder) -> None:
        self._routing, self._upstream, self._forwarder = routing, upstream, forwarder

    async def serve(self, call: Call) -> None:
        """Raises SwiftClawError before the handshake is answered."""
        exchange, pool = call.exchange, call.pool
        await exchange.receive()  # websocket.connect
        headers = [(name, value) for name, value in self._forwarder.headers(call) if not name.startswith("sec-websocket-")]
        protocols: list[str] = exchange.scope.get("subprotocols") or []
        tried: set[str] = set()
        while True:
            lease = pool.choose(call.request, tried)
            member, code = lease.backend.member, CLIENT_GONE
            try:
                connecting = self._upstream.websocket(member.host, member.port, call.path, headers, protocols)
                socket = await asyncio.wait_for(connecting, pool.settings.request_timeout_s)
                lease.heard(time.monotonic(), None)
                code = 101
                async with socket:
                    accepted = [(b"x-request-id", exchange.request_id.encode()), *lease.backend.told]
                    cookie = set_cookie(exchange, pool, call.request, call.session)
                    if cookie is not None:
                        accepted.append((b"set-cookie", cookie))
                    await exchange.send({"type": "websocket.accept", "subprotocol": socket.protocol, "headers": accepted})
                    await _pump_both(exchange.receive, exchange.send, socket, pool.settings.timeouts.idle_s)
                return
            except NotConnected:
                self._routing.unreachable(pool, lease.backend)
                tried.add(member.id)
            except asyncio.TimeoutError:
                code = 504
                raise RequestTimeout(f"no handshake within {pool.settings.request_timeout_s:g} s", agent=pool.name) from None
            except aiohttp.WSServerHandshakeError as declined:
                if declined.status == 503 and declined.headers is not None and REFUSED_HEADER.decode() in declined.headers:
                    tried.add(member.id)
                    continue
                code = declined.status
                await _decline(exchange, declined.status)
                return
            except BrokeOff as error:
                code = 502
                raise InstanceFailed(f"{member.id} broke off", agent=pool.name) from error
            finally:
                lease.release(None if member.id in tried else code, time.monotonic())


async def _decline(exchange: Exchange, status: int) -> None:
    if "websocket.http.response" in (exchange.scope.get("extensions") or {}):
        await exchange.send({"type": "websocket.http.response.start", "status": status, "headers": []})
        await exchange.send({"type": "websocket.http.response.body", "body": b""})
    else:
        await exchange.send({"type": "websocket.close", "code": 1008})


async def _pump_both(receive: Receive, send: Send, socket: aiohttp.ClientWebSocketResponse[Any], idle_s: float) -> None:
    """Until one side closes, breaks, or neither says anything for `idle_s`."""
    heard = [time.monotonic()]
    client = asyncio.create_task(_from_client(receive, socket, heard))
    instance = asyncio.create_task(_from_instance(socket, send, heard))
    pumps = {client, instance}
    try:
        while True:
            left = heard[0] + idle_s - time.monotonic()
            done, _ = await asyncio.wait(pumps, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            if heard[0] + idle_s <= time.monotonic():
                await send({"type": "websocket.close", "code": GOING_AWAY, "reason": "idle"})
                break
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _from_client(receive: Receive, socket: aiohttp.ClientWebSocketResponse[Any], heard: list[float]) -> None:
    while True:
        message = await receive()
        heard[0] = time.monotonic()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or NO_STATUS
            await socket.close(code=code if code != NO_STATUS else 1000)
            return
        text = message.get("text")
        if text is not None:
            await socket.send_str(text)
        else:
            await socket.send_bytes(message["bytes"])


async def _from_instance(socket: aiohttp.ClientWebSocketResponse[Any], send: Send, heard: list[float]) -> None:
    async for message in socket:
        heard[0] = time.monotonic()
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        else:
            break
    closing: dict[str, Any] = {"type": "websocket.close", "code": _sendable(socket.close_code)}
    await send(closing)


def _sendable(code: int | None) -> int:
    """1006 (the connection just ended) may not be sent; the client is told of an internal error."""
    if code is None or code in (1006, 1015):
        return INTERNAL_ERROR
    return 1000 if code == NO_STATUS else code
