"""What goes out to an instance and what comes back: the headers, the connection, and the session's home.

Decides nothing: `Pool.choose` picks the instance, `Attempts` whether another may be tried. What happens when is told by
`ProxiedRequest` for HTTP and by `WebSocketForwarder` for WebSockets.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from cluster.messages import APP_PREFIX, SESSION_MOVED_HEADER
from cluster.transport.listener import in_url
from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import Lease
from deployments.balancing.pool import Pool
from deployments.request.client_address import ClientAddresses
from deployments.request.record import RequestRecord
from deployments.request.sessions import NONE, Session, named_by_app, token_headers
from deployments.types import Headers, SentHeaders
from deployments.upstream import headers
from deployments.upstream.connection import Connection, InstanceRequest, RequestBody
from deployments.upstream.connection_pool import ConnectionPool
from deployments.upstream.headers import Head
from policies.base import Request

TOO_MANY = 429  # from the agent itself: neither a success nor a failure of the instance


@dataclass(slots=True)
class Call:
    """One admitted request: its record, its agent, and what to send."""

    record: RequestRecord
    pool: Pool
    request: Request
    path: str  # at the instance
    session: Session = NONE
    sent: SentHeaders | None = None  # the headers for every attempt, once they were made

    def token_headers(self, clients: ClientAddresses) -> SentHeaders:
        """The response headers that give the client its session token, once an instance was chosen."""
        if not self.session.by_cookie or self.session.name is None or self.pool.sessions is None:
            return []
        home = self.pool.sessions.instance_of(self.session.name)
        if home is None:
            return []
        secure = clients.origin(self.record).scheme == "https"
        return token_headers(self.pool, self.session, home.member, secure=secure)


class HomeSharing(Protocol):
    """How the other gateways learn of a session's new home."""

    def announce(self) -> None:
        """Send what is new; does not wait."""

    async def settled(self) -> None:
        """Return when the other gateways have it, or do not answer."""


class Forwarder:
    """`sharing`: set once there are other gateways to share session homes with."""

    def __init__(self, agents: AgentTable, connections: ConnectionPool) -> None:
        self._agents, self._connections = agents, connections
        self.sharing: HomeSharing | None = None

    @property
    def clients(self) -> ClientAddresses:
        return self._agents.clients

    # --- to the instance --------------------------------------------------------------------------------------------

    def idle_connection(self, lease: Lease) -> Connection | None:
        member = lease.backend.member
        return self._connections.take_idle((member.host, member.port))

    def connect(self, lease: Lease, connect_s: float) -> asyncio.Task[Connection]:
        """Raises NotConnected."""
        member = lease.backend.member
        return asyncio.ensure_future(self._connections.connect((member.host, member.port), connect_s))

    def instance_request(self, call: Call, lease: Lease, body: RequestBody) -> InstanceRequest:
        member = lease.backend.member
        sent = self.attempt_headers(call, lease)
        return InstanceRequest(call.record.method, call.path, sent, body, f"{in_url(member.host)}:{member.port}")

    def attempt_headers(self, call: Call, lease: Lease) -> SentHeaders:
        """The request's headers with those of this attempt. A new home of its session is announced to the other gateways."""
        if call.sent is None:
            call.sent = self._request_headers(call)
        attempted = [*call.sent, headers.limit(call.pool.settings.limits.max_connections_per_instance)]
        if lease.session_placed and self.sharing is not None:
            self.sharing.announce()
        if lease.session_moved:
            attempted.append((SESSION_MOVED_HEADER, b"1"))
        for observer in call.record.observers:
            attempted = observer.attempt_started(call.record, lease.backend.member, lease.started_at, attempted)
        return attempted

    def _request_headers(self, call: Call) -> SentHeaders:
        snapshot = self._agents.snapshot
        key = snapshot.key if snapshot else ""
        mounted = call.path.startswith(APP_PREFIX)
        return headers.for_instance(call.record, self._agents.clients, key, call.session.name, mounted=mounted)

    # --- to the client ----------------------------------------------------------------------------------------------

    def returned_headers(self, call: Call, lease: Lease, head: Head) -> SentHeaders:
        """Of the response: the instance's, and those of every forwarded response."""
        record = call.record
        return [
            *head.headers,
            (b"x-request-id", record.request_id.encode()),
            *lease.backend.response_headers,
            *record.response_headers,
            *call.token_headers(self._agents.clients),
        ]

    def settling(self, call: Call, lease: Lease, received: Headers) -> asyncio.Task[None] | None:
        """Done when every gateway knows the session's new home, which comes before the client's answer; None: it has none."""
        if self._places_session(call, lease, received) and self.sharing is not None:
            return asyncio.ensure_future(self.sharing.settled())
        return None

    def _places_session(self, call: Call, lease: Lease, received: Headers) -> bool:
        """Whether the other gateways have to learn of a home: one that was chosen, or one that the app's response names."""
        sessions = call.pool.sessions
        learn = call.pool.affinity.learn if call.pool.affinity else None
        created = named_by_app(received, learn) if learn is not None else None
        if sessions is not None and created is not None and sessions.learn(created, lease.backend, time.monotonic()):
            if self.sharing is not None:
                self.sharing.announce()
            return True
        return lease.session_placed
