"""One request to one instance, and to the next one where that is allowed.

Decides nothing: `Pool.choose` picks the instance, `Attempts` whether another may be tried. In order: headers out, request,
head back, body piece by piece.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Protocol

from cluster.messages import APP_PREFIX, SESSION_MOVED_HEADER
from cluster.transport.http_protocol import IDLE
from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import Lease
from deployments.balancing.pool import Pool
from deployments.request.client_address import ClientAddresses
from deployments.request.exchange import ClientDisconnected, DeadlineExceeded, Exchange
from deployments.request.sessions import NONE, Session, named_by_app, token_headers
from deployments.types import Body, Headers, SentHeaders
from deployments.upstream import headers
from deployments.upstream.attempts import GATEWAY_ERRORS, Attempts
from deployments.upstream.connection import ConnectionBroken, InstanceResponse, NotConnected
from deployments.upstream.connection_pool import ConnectionPool
from deployments.upstream.headers import Head
from policies.base import Request
from policies.errors import CLIENT_CLOSED_REQUEST, InstanceFailed, Overloaded, RequestTimeout

log = logging.getLogger("swiftclaw.gateway")

TOO_MANY = 429  # from the agent itself: neither a success nor a failure of the instance


@dataclass(slots=True)
class Call:
    """One admitted request: its exchange, its agent, and what to send."""

    exchange: Exchange
    pool: Pool
    request: Request
    path: str  # at the instance
    body: Body = None
    session: Session = NONE

    @property
    def body_is_kept(self) -> bool:
        """Whether the body can be sent again."""
        return self.body is None or isinstance(self.body, bytes)

    def token_headers(self, clients: ClientAddresses) -> SentHeaders:
        """The response headers that give the client its session token, once an instance was chosen."""
        if not self.session.by_cookie or self.session.name is None or self.pool.sessions is None:
            return []
        home = self.pool.sessions.instance_of(self.session.name)
        if home is None:
            return []
        secure = clients.origin(self.exchange.scope, self.exchange.headers).scheme == "https"
        return token_headers(self.pool, self.session, home.member, secure=secure)


class HomeSharing(Protocol):
    """How the other gateways learn of a session's new home."""

    def announce(self) -> None:
        """Send what is new; does not wait."""

    async def settled(self) -> None:
        """Return when the other gateways have it, or do not answer."""


class Forwarder:
    """Sends admitted requests to instances. `sharing`: set once there are other gateways to share session homes with."""

    def __init__(self, agents: AgentTable, connections: ConnectionPool) -> None:
        self._agents, self._connections = agents, connections
        self.sharing: HomeSharing | None = None

    @property
    def clients(self) -> ClientAddresses:
        return self._agents.clients

    async def settle_homes(self, call: Call, lease: Lease, headers: Headers) -> None:
        """Send a session's new home, if this response makes one, to the other gateways, and wait until they have it."""
        if self._places_session(call, lease, headers) and self.sharing is not None:
            self.sharing.announce()
            await self.sharing.settled()

    async def http(self, call: Call) -> None:
        """Answer the exchange from an instance. Raises SwiftClawError, also after the head was sent, and ClientDisconnected."""
        exchange, pool = call.exchange, call.pool
        exchange.guard(pool.settings.request_timeout_s)
        exchange.scope[IDLE] = pool.settings.timeouts.idle_s
        sent = self.headers(call)
        try:
            with Attempts(exchange, pool, call.request, body_is_kept=call.body_is_kept) as attempts:
                while not await self._attempt(call, await attempts.place(), sent, attempts):
                    pass
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            if isinstance(why, DeadlineExceeded):
                raise RequestTimeout(_too_long(call), agent=pool.name) from None
            raise why from None
        finally:
            exchange.done()

    def headers(self, call: Call) -> SentHeaders:
        snapshot = self._agents.snapshot
        key = snapshot.key if snapshot else ""
        mounted = call.path.startswith(APP_PREFIX)
        return headers.for_instance(call.exchange, self._agents.clients, key, call.session.name, mounted=mounted)

    def begin_attempt(self, call: Call, lease: Lease, sent: SentHeaders) -> SentHeaders:
        """The request's headers with those of this attempt. A new home of its session is announced to the other gateways."""
        attempted = [*sent, headers.limit(call.pool.settings.limits.max_connections_per_instance)]
        if lease.session_placed and self.sharing is not None:
            self.sharing.announce()
        if lease.session_moved:
            attempted.append((SESSION_MOVED_HEADER, b"1"))
        for observer in call.exchange.observers:
            attempted = observer.attempt_started(call.exchange, lease.backend.member, lease.started_at, attempted)
        return attempted

    async def _attempt(self, call: Call, lease: Lease, sent: SentHeaders, attempts: Attempts) -> bool:
        """Returns True when the request was answered, False when another instance may be tried. Raises as `http` does."""
        exchange, pool, member = call.exchange, call.pool, lease.backend.member
        code: int | None = CLIENT_CLOSED_REQUEST
        ok: bool | None = None  # the instance worked (True), failed (False), or neither is known (None)
        response: InstanceResponse | None = None
        again = False
        lease.move_elsewhere = lambda: attempts.moves(lease)
        try:
            attempted = self.begin_attempt(call, lease, sent)
            response = await self._connections.request(
                exchange.method, member.host, member.port, call.path, attempted, call.body, pool.settings.timeouts.connection_s
            )
            head = headers.from_instance(response.status, response.headers)
            if head.refused is not None:
                code = None
                if not call.body_is_kept:
                    raise Overloaded(
                        "the instance refused the request, and a streamed body cannot be sent again", agent=pool.name
                    )
                attempts.refused(lease, head)
                return False
            ok = None if response.status == TOO_MANY else response.status < 500
            lease.answered(time.monotonic(), head.report, failed=ok is False)
            if response.status in GATEWAY_ERRORS and attempts.repeats(lease):
                code, again = None, True
            else:
                attempts.answered()
                await self._relay(call, lease, response, head)
                code = response.status
                return True
        except NotConnected:
            code, ok = None, False
            pool.mark_unreachable(lease.backend, time.monotonic())
            attempts.skip(lease)
            return False
        except ConnectionBroken as error:
            ok = None
            if exchange.body_failure is not None:
                code = (
                    CLIENT_CLOSED_REQUEST if isinstance(exchange.body_failure, ClientDisconnected) else None
                )  # refused by the edge, and counted there
                raise exchange.body_failure from None
            code, ok = 502, False
            log.warning("%s of %s broke the connection (%s), request %s", member.id, pool.name, error, exchange.request_id)
            if not attempts.repeats(lease):
                raise InstanceFailed(
                    f"{member.id} closed the connection before the response was complete", agent=pool.name
                ) from error
            code, again = None, True
        except asyncio.CancelledError:
            code, ok = CLIENT_CLOSED_REQUEST, None
            if exchange.timed_out:  # after the first byte the client may be the one that does not read
                code, ok = 504, None if exchange.started else False
            if not exchange.moved():
                raise
            code, again = None, True
        finally:
            if response is not None:
                response.close()
            lease.release(code, time.monotonic(), ok)
            exchange.counted = exchange.counted or code is not None
            for observer in exchange.observers:
                observer.attempt_ended(response.status if response is not None else None, ok, lease.first_byte_at)
        if again:
            await attempts.pause()
        return False

    async def _relay(self, call: Call, lease: Lease, response: InstanceResponse, head: Head) -> None:
        exchange, idle_s = call.exchange, call.pool.settings.timeouts.idle_s
        returned = [
            *head.headers,
            (b"x-request-id", exchange.request_id.encode()),
            *lease.backend.response_headers,
            *exchange.response_headers,
        ]
        returned += call.token_headers(self._agents.clients)
        if head.streamed:
            exchange.deadline(idle_s)
        if self._places_session(call, lease, head.headers) and self.sharing is not None:
            await self.sharing.settled()  # every gateway knows the home before the client has its answer
        await exchange.start(response.status, returned)
        whole = response.whole()
        if whole is not None:
            lease.count(response.status, time.monotonic())
            await exchange.write(whole, more=False)
            return
        last = False
        async for piece in response.pieces():
            if head.streamed:
                exchange.deadline(idle_s)
            if last := response.ended:
                lease.count(response.status, time.monotonic())
            await exchange.write(piece, more=not last)
        if not last:
            lease.count(response.status, time.monotonic())
            await exchange.write(b"", more=False)

    def _places_session(self, call: Call, lease: Lease, headers: Headers) -> bool:
        """Whether the other gateways have to learn of a home: one that was chosen, or one that the app's response names."""
        sessions = call.pool.sessions
        learn = call.pool.affinity.learn if call.pool.affinity else None
        created = named_by_app(headers, learn) if learn is not None else None
        if sessions is not None and created is not None and sessions.learn(created, lease.backend, time.monotonic()):
            if self.sharing is not None:
                self.sharing.announce()
            return True
        return lease.session_placed


def _too_long(call: Call) -> str:
    settings = call.pool.settings
    if call.exchange.started:
        return (
            f"the response was cut off: no data for {settings.timeouts.idle_s:g} s, or not complete within the request timeout"
        )
    return f"no response within {settings.request_timeout_s:g} s"
