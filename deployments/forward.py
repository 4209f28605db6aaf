"""One request to one instance, and to the next one while the first has provably not begun.

Decides nothing about who: `Pool.choose` does. What is done here in order: headers, send, head back, body piece by piece.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator

from cluster.messages import KEY_HEADER, LOAD_HEADER, REFUSED_HEADER
from deployments.exchange import Exchange, TimedOut
from deployments.routing import Backend, Lease, Pool, Routing
from deployments.upstream import Answer, BrokeOff, NotConnected, Upstream
from policies.base import Request
from policies.errors import InstanceFailed, Overloaded, RequestTimeout, SwiftClawError

log = logging.getLogger("swiftclaw.gateway")

CLIENT_GONE = 499  # NGINX's code for it, in metrics only

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
_OURS = frozenset((KEY_HEADER, LOAD_HEADER, REFUSED_HEADER, b"x-swiftclaw-session"))
_NOT_SENT = (
    _HOP_BY_HOP | _OURS | {b"expect", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"}
)
_NOT_RETURNED = (
    _HOP_BY_HOP | _OURS | {b"x-request-id", b"x-swiftclaw-instance", b"x-swiftclaw-version", b"x-swiftclaw-region"}
)

Body = bytes | AsyncIterator[bytes] | None


class Forwarder:
    """Sends what the edge admitted."""

    def __init__(self, routing: Routing, upstream: Upstream) -> None:
        self._routing, self._upstream = routing, upstream

    async def http(self, exchange: Exchange, pool: Pool, request: Request, path: str, body: Body) -> None:
        """Answer the exchange from an instance. Raises SwiftClawError (nothing was sent back) or ClientGone."""
        exchange.guard(pool.settings.request_timeout_s)
        headers = self.request_headers(exchange, request)
        tried: set[str] = set()
        try:
            while True:
                lease = pool.choose(request, tried)
                if await self._attempt(exchange, pool, lease, path, headers, body):
                    return
                tried.add(lease.backend.member.id)
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            if isinstance(why, TimedOut):
                raise RequestTimeout(
                    f"no complete answer within {pool.settings.request_timeout_s:g} s", agent=pool.name
                ) from None
            raise why from None
        finally:
            exchange.done()

    async def _attempt(
        self, exchange: Exchange, pool: Pool, lease: Lease, path: str, headers: list[tuple[str, str]], body: Body
    ) -> bool:
        """True when the request was answered, False when this instance has not begun it."""
        member = lease.backend.member
        code: int | None = CLIENT_GONE
        answer: Answer | None = None
        try:
            answer = await self._upstream.request(exchange.method, member.host, member.port, path, headers, body)
            if self._not_executed(answer):
                code = None
                if body is not None and not isinstance(body, bytes):
                    raise Overloaded("the instance refused, and a streamed body cannot be sent again", agent=pool.name)
                return False
            lease.heard(time.monotonic(), _reported(answer))
            await self._relay(exchange, pool, lease.backend, answer)
            code = answer.status
            return True
        except NotConnected:
            code = None
            self._routing.unreachable(pool, lease.backend)
            return False
        except BrokeOff as error:
            if exchange.body_failure is not None:
                raise exchange.body_failure from None
            code = 502
            failed = InstanceFailed(f"{member.id} broke off", agent=pool.name)
            log.warning("%s of %s broke off (%s), request %s", member.id, pool.name, error, exchange.request_id)
            if not exchange.started:
                raise failed from error
            await end_broken(exchange, failed)
            return True
        except asyncio.CancelledError:
            code = 504 if exchange.timed_out else CLIENT_GONE
            raise
        finally:
            if answer is not None:
                answer.close()
            lease.release(code, time.monotonic())

    async def _relay(self, exchange: Exchange, pool: Pool, backend: Backend, answer: Answer) -> None:
        streamed = True
        headers = []
        for name, value in answer.headers:
            lower = name.lower()
            if lower == b"content-length":
                streamed = False
            if lower not in _NOT_RETURNED:
                headers.append((lower, value))
        member = backend.member
        headers += (
            (b"x-request-id", exchange.request_id.encode()),
            (b"x-swiftclaw-instance", member.id.encode()),
            (b"x-swiftclaw-version", member.version.encode()),
            (b"x-swiftclaw-region", member.region.encode()),
        )
        idle_s = pool.settings.timeouts.idle_s
        if streamed:
            exchange.deadline(idle_s)
        await exchange.start(answer.status, headers)
        whole = answer.whole()
        if whole is not None:
            await exchange.write(whole, more=False)
            return
        async for piece in answer.pieces():
            if streamed:
                exchange.deadline(idle_s)
            await exchange.write(piece, more=True)
        await exchange.write(b"", more=False)

    @staticmethod
    def _not_executed(answer: Answer) -> bool:
        return answer.status == 503 and any(name.lower() == REFUSED_HEADER for name, _ in answer.headers)

    def request_headers(self, exchange: Exchange, request: Request) -> list[tuple[str, str]]:
        """The client's, less what ends at this hop, plus what the instance is to know."""
        snapshot = self._routing.snapshot
        named = _named_by_connection(exchange)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in exchange.headers
            if name not in _NOT_SENT and name not in named
        ]
        client = exchange.scope.get("client")
        headers += (
            ("x-request-id", exchange.request_id),
            ("x-forwarded-for", client[0] if client else "unknown"),
            ("x-forwarded-proto", exchange.scope.get("scheme", "http").replace("ws", "http")),
            ("x-forwarded-host", (exchange.header(b"host") or b"").decode("latin-1")),
            (KEY_HEADER.decode(), snapshot.key if snapshot else ""),
        )
        if request.session is not None:
            headers.append(("x-swiftclaw-session", request.session))
        return headers


def _named_by_connection(exchange: Exchange) -> frozenset[bytes]:
    """Headers that the client's Connection header declares to be for this hop only."""
    value = exchange.header(b"connection")
    if value is None or value.lower() in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(token.strip().lower() for token in value.split(b","))


def _reported(answer: Answer) -> int | None:
    for name, value in answer.headers:
        if name.lower() == LOAD_HEADER:
            count = value.split(b" ", 1)[0]
            return int(count) if count.isdigit() else None
    return None


async def end_broken(exchange: Exchange, error: SwiftClawError) -> None:
    """An event stream that began says why it ends; anything else just ends, short, which every client notices."""
    if exchange.event_stream:
        data = json.dumps(exchange.error(error))
        await exchange.write(f"event: error\ndata: {data}\n\n".encode(), more=False)
