"""One WebSocket through the gateway: two pumps between the client and one instance, until either side ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cluster.transport.running_clock import LEAST_SLEEP_S, running_clock
from cluster.transport.websocket_protocol import ACTIVE_AT, ON_CLOSE
from deployments.balancing.backend import Lease
from deployments.request.exchange import DeadlineExceeded, Exchange
from deployments.request.responses import deny_websocket
from deployments.types import SentHeaders
from deployments.upstream.attempts import LEEWAY_S, Attempts
from deployments.upstream.connection import ConnectionBroken, NotConnected
from deployments.upstream.connection_pool import ConnectionPool
from deployments.upstream.forward import TOO_MANY, Call, Forwarder
from deployments.upstream.headers import Head, from_instance
from deployments.upstream.websocket_connection import ABNORMAL, NO_STATUS, Closed, HandshakeDeclined, InstanceWebSocket
from policies.errors import CLIENT_CLOSED_REQUEST, InstanceFailed, RequestTimeout

NORMAL, GOING_AWAY, INTERNAL_ERROR = 1000, 1001, 1011


class WebSocketForwarder:
    """Forwards WebSockets. One that is open counts as one request in flight."""

    def __init__(self, connections: ConnectionPool, forwarder: Forwarder) -> None:
        self._connections, self._forwarder = connections, forwarder

    async def serve(self, exchange: Exchange, call: Call) -> None:
        """Forward until either side closes. Raises SwiftClawError or ClientDisconnected, before the handshake is answered."""
        pool = call.pool
        await exchange.receive()  # websocket.connect
        exchange.guard(pool.settings.request_timeout_s)
        attempts = Attempts(exchange, pool, call.request, body_is_kept=False)
        try:
            while not await self._attempt(exchange, call, await self._place(exchange, call, attempts), attempts):
                pass
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            if isinstance(why, DeadlineExceeded):
                seconds = f"{pool.settings.request_timeout_s:g} s"
                raise RequestTimeout(f"no WebSocket handshake within {seconds}", agent=pool.name) from None
            raise why from None
        finally:
            attempts.end()
            exchange.done()

    @staticmethod
    async def _place(exchange: Exchange, call: Call, attempts: Attempts) -> Lease:
        """A lease on an instance that was not tried yet, at once or after waiting. Raises SwiftClawError."""
        lease = attempts.take()
        if lease is not None:
            return lease
        exchange.deadline(attempts.wait_timeout_s + LEEWAY_S)
        waiting = attempts.enqueue()
        try:
            lease = await waiting
        except BaseException:
            attempts.leave_queue()
            raise
        attempts.granted(lease)
        exchange.deadline(call.pool.settings.request_timeout_s)
        return lease

    async def _attempt(self, exchange: Exchange, call: Call, lease: Lease, attempts: Attempts) -> bool:
        """Returns True when it was served or the agent declined it, False when another instance may be tried."""
        pool, member = call.pool, lease.backend.member
        code: int | None = CLIENT_CLOSED_REQUEST
        ok: bool | None = None
        status: int | None = None  # of the handshake's response
        try:
            headers = self._forwarder.attempt_headers(call, lease)
            attempted = [header for header in headers if not header[0].startswith(b"sec-websocket-")]
            protocols: list[str] = exchange.scope.get("subprotocols") or []
            socket = await self._connections.websocket(
                member.host, member.port, call.path, attempted, protocols, pool.settings.timeouts.connection_s
            )
            status = code = 101
            ok = True
            head = from_instance(status, socket.headers)
            lease.answered(time.monotonic(), head.report)
            await self._relay(exchange, call, lease, head, socket)
            return True
        except NotConnected:
            code, ok = None, False
            pool.mark_unreachable(lease.backend, time.monotonic())
            attempts.skip(lease)
            return False
        except HandshakeDeclined as declined:
            status = declined.status
            head = from_instance(status, declined.headers)
            if head.refused is not None:
                code = None
                attempts.refused(lease, head)
                return False
            code, ok = status, None if status == TOO_MANY else status < 500
            lease.answered(time.monotonic(), head.report, failed=ok is False)
            await self._decline(exchange, call, lease, head, declined)
            return True
        except ConnectionBroken as error:
            code, ok = 502, False
            raise InstanceFailed(
                f"{member.id} closed the connection before the handshake was complete", agent=pool.name
            ) from error
        except asyncio.CancelledError:
            if exchange.timed_out:
                code, ok = 504, False
            raise
        finally:
            lease.release(code, time.monotonic(), ok)
            exchange.counted = exchange.counted or code is not None
            for observer in exchange.observers:
                observer.attempt_ended(status, ok, lease.first_byte_at)

    async def _decline(self, exchange: Exchange, call: Call, lease: Lease, head: Head, declined: HandshakeDeclined) -> None:
        """Pass the app's own response on."""
        exchange.done()
        exchange.status = declined.status
        lease.count(declined.status, time.monotonic())
        headers = await self._returned(call, lease, head)
        await deny_websocket(exchange.scope, exchange.send, declined.status, headers, declined.body)

    async def _relay(self, exchange: Exchange, call: Call, lease: Lease, head: Head, socket: InstanceWebSocket) -> None:
        exchange.done()
        exchange.status = 101
        try:
            headers = await self._returned(call, lease, head)

            # Counted before its client can know that it is over: a gateway that is killed then has counted it.
            def count() -> None:
                lease.count(101, time.monotonic())

            exchange.scope[ON_CLOSE] = count
            await exchange.send({"type": "websocket.accept", "subprotocol": socket.subprotocol, "headers": headers})
            await _Relay(exchange, socket, call.pool.settings.timeouts.idle_s, count).run()
        finally:
            socket.abort()

    async def _returned(self, call: Call, lease: Lease, head: Head) -> SentHeaders:
        """The headers of the handshake's response: the app's, and those of every forwarded response."""
        settled = self._forwarder.settling(call, lease, head.headers)
        if settled is not None:
            await settled
        returned = self._forwarder.returned_headers(call, lease, head)
        return [header for header in returned if header[0] != b"content-length"]


class _Relay:
    """Runs until either side closes or fails, or until neither has shown life for `idle_s`."""

    def __init__(self, exchange: Exchange, socket: InstanceWebSocket, idle_s: float, count: Callable[[], None]) -> None:
        """`count`: called before the client learns that it is over."""
        self._exchange, self._socket, self._idle_s, self._count = exchange, socket, idle_s, count
        self._clock = running_clock()
        self._started_at = self._clock.now()

    async def run(self) -> None:
        pumps = {asyncio.create_task(self._from_client()), asyncio.create_task(self._from_instance())}
        try:
            while not (await asyncio.wait(pumps, timeout=self._sleep_s(), return_when=asyncio.FIRST_COMPLETED))[0]:
                if self._left_s() <= 0:
                    await self._close_client(GOING_AWAY, "idle")
                    await self._socket.close(GOING_AWAY, "idle")
                    return
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _left_s(self) -> float:
        """Until it is idle."""
        client_at: float = self._exchange.scope.get(ACTIVE_AT, self._started_at)
        return max(client_at, self._socket.active_at) + self._idle_s - self._clock.now()

    def _sleep_s(self) -> float:
        return max(self._left_s(), LEAST_SLEEP_S)

    async def _from_client(self) -> None:
        while (message := await self._exchange.receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            await self._socket.send(message["bytes"] if text is None else text)
        await self._socket.close(message.get("code") or NO_STATUS, message.get("reason") or "")

    async def _from_instance(self) -> None:
        while not isinstance(message := await self._socket.receive(), Closed):
            await self._exchange.send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
        if message.code == ABNORMAL:  # must not be sent
            await self._close_client(INTERNAL_ERROR, "the instance broke the connection")
        else:
            await self._close_client(NORMAL if message.code == NO_STATUS else message.code, message.reason)
        await self._socket.close()

    async def _close_client(self, code: int, reason: str) -> None:
        self._count()
        closing: dict[str, Any] = {"type": "websocket.close", "code": code, "reason": reason}
        await self._exchange.send(closing)
