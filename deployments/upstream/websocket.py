"""One WebSocket through the gateway: two pumps between the client and one instance, until either side ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from deployments.balancing.backend import Lease
from deployments.request.responses import deny_websocket
from deployments.types import Receive, Send, SentHeaders
from deployments.upstream.attempts import Attempts
from deployments.upstream.connection import ConnectionBroken, NotConnected
from deployments.upstream.connection_pool import ConnectionPool
from deployments.upstream.forward import Call, Forwarder
from deployments.upstream.headers import from_instance, limit
from policies.errors import CLIENT_CLOSED_REQUEST, InstanceFailed, RequestTimeout

GOING_AWAY, INTERNAL_ERROR, NO_STATUS = 1001, 1011, 1005


class WebSocketForwarder:
    """Forwards WebSockets. One that is open counts as one request in flight."""

    def __init__(self, connections: ConnectionPool, forwarder: Forwarder) -> None:
        self._connections, self._forwarder = connections, forwarder

    async def serve(self, call: Call) -> None:
        """Forward until either side closes. Raises SwiftClawError, before the handshake is answered."""
        exchange, pool = call.exchange, call.pool
        await exchange.receive()  # websocket.connect
        headers = [(name, value) for name, value in self._forwarder.headers(call) if not name.startswith(b"sec-websocket-")]
        protocols: list[str] = exchange.scope.get("subprotocols") or []
        with Attempts(exchange, pool, call.request, body_is_kept=False) as attempts:
            while not await self._attempt(call, await attempts.place(), attempts, headers, protocols):
                pass

    async def _attempt(self, call: Call, lease: Lease, attempts: Attempts, headers: SentHeaders, protocols: list[str]) -> bool:
        """Returns True when it was served or the agent declined it, False when another instance may be tried."""
        exchange, pool, member = call.exchange, call.pool, lease.backend.member
        code: int | None = CLIENT_CLOSED_REQUEST
        ok: bool | None = None
        status: int | None = None  # of the handshake's response
        try:
            limited = [*headers, limit(pool.settings.limits.max_connections_per_instance)]
            for observer in exchange.observers:
                limited = observer.attempt_started(exchange, member, lease.started_at, limited)
            connecting = self._connections.websocket(member.host, member.port, call.path, limited, protocols)
            socket = await asyncio.wait_for(connecting, pool.settings.request_timeout_s)
            lease.answered(time.monotonic(), None)
            status = code = 101
            ok = True
            async with socket:
                accepted = [
                    (b"x-request-id", exchange.request_id.encode()),
                    *lease.backend.response_headers,
                    *exchange.response_headers,
                ]
                accepted += call.token_headers(self._forwarder.clients)
                if lease.session_placed:
                    await self._forwarder.settle_homes()
                exchange.status = 101
                await exchange.send({"type": "websocket.accept", "subprotocol": socket.protocol, "headers": accepted})
                await _pump_both(exchange.receive, exchange.send, socket, pool.settings.timeouts.idle_s)
            return True
        except NotConnected:
            code, ok = None, False
            pool.mark_unreachable(lease.backend, time.monotonic())
            attempts.skip(lease)
            return False
        except asyncio.TimeoutError:
            code, ok = 504, False
            raise RequestTimeout(
                f"no WebSocket handshake with {member.id} within {pool.settings.request_timeout_s:g} s", agent=pool.name
            ) from None
        except aiohttp.WSServerHandshakeError as declined:
            status = declined.status
            head = from_instance(status, _raw(declined))
            if head.refused is not None:
                code = None
                attempts.refused(lease, head)
                return False
            code, ok = declined.status, declined.status < 500
            lease.answered(time.monotonic(), head.report, failed=not ok)
            exchange.status = declined.status
            await deny_websocket(exchange.scope, exchange.send, declined.status)
            return True
        except ConnectionBroken as error:
            code, ok = 502, False
            raise InstanceFailed(
                f"{member.id} closed the connection before the handshake was complete", agent=pool.name
            ) from error
        finally:
            lease.release(code, time.monotonic(), ok)
            exchange.counted = exchange.counted or code is not None
            for observer in exchange.observers:
                observer.attempt_ended(status, ok, lease.first_byte_at)


def _raw(declined: aiohttp.WSServerHandshakeError) -> SentHeaders:
    return [(name.encode(), value.encode()) for name, value in (declined.headers or {}).items()]


async def _pump_both(receive: Receive, send: Send, socket: aiohttp.ClientWebSocketResponse[Any], idle_s: float) -> None:
    """Run until either side closes or fails, or neither sends anything for `idle_s`."""
    last_message_at = [time.monotonic()]
    client = asyncio.create_task(_from_client(receive, socket, last_message_at))
    instance = asyncio.create_task(_from_instance(socket, send, last_message_at))
    pumps = {client, instance}
    try:
        while True:
            left = last_message_at[0] + idle_s - time.monotonic()
            done, _ = await asyncio.wait(pumps, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            if last_message_at[0] + idle_s <= time.monotonic():
                await send({"type": "websocket.close", "code": GOING_AWAY, "reason": "idle"})
                break
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _from_client(receive: Receive, socket: aiohttp.ClientWebSocketResponse[Any], last_message_at: list[float]) -> None:
    while True:
        message = await receive()
        last_message_at[0] = time.monotonic()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or NO_STATUS
            await socket.close(code=code if code != NO_STATUS else 1000)
            return
        text = message.get("text")
        if text is not None:
            await socket.send_str(text)
        else:
            await socket.send_bytes(message["bytes"])


async def _from_instance(socket: aiohttp.ClientWebSocketResponse[Any], send: Send, last_message_at: list[float]) -> None:
    async for message in socket:
        last_message_at[0] = time.monotonic()
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        else:
            break
    closing: dict[str, Any] = {"type": "websocket.close", "code": _sendable(socket.close_code)}
    await send(closing)


def _sendable(code: int | None) -> int:
    """1006 (abnormal closure) must not be sent: the client gets 1011, internal error."""
    if code is None or code in (1006, 1015):
        return INTERNAL_ERROR
    return 1000 if code == NO_STATUS else code
