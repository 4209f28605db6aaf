"""What do the gateways exchange directly? Their admissions, and their requests in flight on each instance.

So that a rate limit holds across all gateways up to one exchange, and `LoadView` knows the others' requests before a response
reports them. Every EVERY_S, while there is news, each gateway posts to every other one; each peer has its own task, timeout
and bounded backlog, so that one that does not answer delays no other. Times are sent as ages: clocks need not agree. The
snapshot names the peers. Source: gossip of counters as in distributed rate limiting (Raghavan et al., Cloud Control with
Distributed Rate Limiting, SIGCOMM 2007), but every pair is sent in full, for exactness.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cluster.messages import KEY_HEADER, PEERS_PATH, Peer
from cluster.transport.listener import Listener, bind
from deployments.balancing.agents import AgentTable
from deployments.gateway.admission import AdmittedRequest, RateLimits
from deployments.gateway.session_exchange import HomesLink, SessionExchange
from deployments.request.cluster_key import carries_key
from deployments.request.exchange import ClientDisconnected, Exchange
from deployments.request.responses import deny_websocket, send_empty
from deployments.types import Receive, Scope, Send
from deployments.upstream.connection_pool import ConnectionPool
from policies.errors import PayloadTooLarge, SwiftClawError

log = logging.getLogger("swiftclaw.gateway")

EVERY_S = 0.1
TIMEOUT_S = 1.0  # for a response
RETRY_S = 0.5  # after a failed post
SILENT_S = 1.0  # a gateway with requests in flight reports every EVERY_S; after this long it has none, or has stopped
LEFT_OUT_S = 30.0  # a Controller that has just started knows only some gateways: links to the others are kept this long
BACKLOG = 100_000  # admissions kept for a peer that does not answer, and for a new one
BATCH = 5_000  # admissions in one message
LARGEST = 8 * 2**20  # bytes of a message


@dataclass
class _Link:
    """The connection to one peer. `batch` is resent under the same number until it was received."""

    peer: Peer
    backlog: deque[AdmittedRequest]
    homes: HomesLink
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    batch: list[AdmittedRequest] = field(default_factory=list)
    number: int = 0
    named_at: float = 0.0  # when a snapshot last named it
    task: asyncio.Task[None] | None = None
    ended: bool = False

    def end(self) -> None:
        """Stop sending. `wait_for` of Python 3.10 and 3.11 may lose a cancellation, so the task is woken to see it as well."""
        self.ended = True
        self.wake.set()
        if self.task is not None:
            self.task.cancel()


@dataclass
class _PeerReport:
    """The last message of one peer."""

    number: int = 0
    received_at: float = 0.0
    in_flight: dict[str, int] = field(default_factory=dict)  # by replica


class Peers:
    """One gateway's links to the others."""

    def __init__(self, gateway: str, agents: AgentTable, rate_limits: RateLimits, connections: ConnectionPool) -> None:
        self._gateway = gateway
        self._agents, self._rate_limits, self._connections = agents, rate_limits, connections
        self.sessions = SessionExchange(agents)
        self._links: dict[str, _Link] = {}
        self._reports: dict[str, _PeerReport] = {}
        self._recent: deque[AdmittedRequest] = deque(maxlen=BACKLOG)  # for new gateways
        self._in_flight: dict[str, int] = {}  # of this gateway, by replica, as last sent
        self._task: asyncio.Task[None] | None = None
        self._listener: Listener | None = None

    async def open(self, host: str) -> int:
        """Listen for the other gateways on a free port, which is returned."""
        self._listener = Listener(self, bind(host, 0), grace_s=0)
        await self._listener.start()
        self._task = asyncio.create_task(self._send_forever())
        return self._listener.port

    async def close(self) -> None:
        for link in self._links.values():
            link.end()
        if self._task is not None:
            self._task.cancel()
        tasks = [task for task in (self._task, *(link.task for link in self._links.values())) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()

    # --- sending --------------------------------------------------------------------------------------------------

    async def _send_forever(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                self.tick(time.monotonic())
            except Exception:
                log.exception("the exchange with the other gateways failed; the next round tries again")

    def tick(self, now: float) -> None:
        """Queue new admissions for every peer, and drop the requests in flight of silent peers."""
        self._rate_limits.sweep()
        self._sync_links(now)
        new = self._rate_limits.drain()
        before, self._in_flight = self._in_flight, self._own()
        self.sessions.collect(now)
        for link in self._links.values():
            link.backlog.extend(new)
            if link.backlog or link.batch or link.homes.pending or self._in_flight or before:
                link.wake.set()
        self._recent.extend(new)
        silent = [report for report in self._reports.values() if report.in_flight and now - report.received_at > SILENT_S]
        for report in silent:
            report.in_flight = {}
        if silent:
            self._spread(now)

    def _sync_links(self, now: float) -> None:
        """Keep a link to every peer that the snapshot names or has named lately. A new one gets the recent admissions."""
        snapshot = self._agents.snapshot
        for peer in snapshot.peers if snapshot else ():
            if peer.gateway == self._gateway:
                continue
            link = self._links.get(peer.gateway)
            if link is None:
                link = self._links[peer.gateway] = _Link(
                    peer, deque(self._recent, maxlen=BACKLOG), self.sessions.link(peer.gateway, now)
                )
                link.task = asyncio.create_task(self._serve(link))
            link.named_at = now
        for name in [name for name, link in self._links.items() if now - link.named_at > LEFT_OUT_S]:
            self.sessions.unlink(name)
            self._links.pop(name).end()
        for name in [name for name, report in self._reports.items() if now - report.received_at > LEFT_OUT_S]:
            del self._reports[name]

    def _own(self) -> dict[str, int]:
        """The requests in flight of this gateway by replica, zeros left out."""
        return {
            backend.member.replica: count
            for pool in self._agents.pools.values()
            for backend in pool.backends()
            if (count := pool.loads.own(backend.instance))
        }

    async def _serve(self, link: _Link) -> None:
        while True:
            await link.wake.wait()
            link.wake.clear()
            if link.ended:
                return
            try:
                received = await asyncio.wait_for(self._send(link), TIMEOUT_S)
            except Exception as error:  # it will be back, or a snapshot will leave it out
                log.debug("could not send to gateway %s: %r", link.peer.gateway, error)
                received = False
            if not received:
                link.homes.failed()
                await asyncio.sleep(RETRY_S)
                continue
            link.batch = []
            link.homes.received()
            if link.backlog or link.homes.pending:
                link.wake.set()

    async def _send(self, link: _Link) -> bool:
        snapshot, peer = self._agents.snapshot, link.peer
        if snapshot is None:
            return False
        if not link.batch and link.backlog:
            link.number += 1
            link.batch = list(islice(link.backlog, BATCH))
            for _ in link.batch:
                link.backlog.popleft()
        message = json.dumps(
            {
                "gateway": self._gateway,
                "number": link.number,
                "admitted": _grouped(link.batch, self._rate_limits.clock()),
                "in_flight": self._in_flight,
                "homes": link.homes.batch(time.monotonic()),
                "caught_up": link.homes.caught_up,
            },
            separators=(",", ":"),
        )
        answer = await self._connections.request(
            "POST", peer.host, peer.port, PEERS_PATH, [(KEY_HEADER, snapshot.key.encode())], message.encode(), TIMEOUT_S
        )
        try:
            answer.whole()
            return answer.status == 204
        finally:
            answer.close()

    def announce(self) -> None:
        """Send new homes of sessions at once (`deployments.upstream.forward.HomeSharing`)."""
        if self.sessions.collect(time.monotonic()):
            for link in self._links.values():
                link.wake.set()

    async def settled(self) -> None:
        await self.sessions.settled()

    # --- receiving ----------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The private port. A message that is not valid changes nothing."""
        exchange = Exchange(scope, receive, send, LARGEST)
        if scope["type"] != "http":
            await deny_websocket(scope, send, 403)
        elif not self._is_gateway(exchange):
            await send_empty(send, 403)
        elif exchange.path != PEERS_PATH.encode() or exchange.method != "POST":
            await send_empty(send, 404)
        else:
            with contextlib.suppress(ClientDisconnected):
                await send_empty(send, await self._process(exchange))

    def _is_gateway(self, exchange: Exchange) -> bool:
        snapshot = self._agents.snapshot
        return snapshot is not None and carries_key(exchange.headers, snapshot.key.encode())

    async def _process(self, exchange: Exchange) -> int:
        try:
            exchange.check_length()
            self.receive(json.loads(await exchange.whole_body()), time.monotonic())
        except PayloadTooLarge:
            return 413
        except (SwiftClawError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("ignored an invalid message of another gateway: %r", error)
            return 400
        return 204

    def receive(self, message: Mapping[str, Any], now: float) -> None:
        """Take over a peer's message. Raises ValueError, TypeError, KeyError or AttributeError for a wrong shape."""
        report = self._reports.setdefault(str(message["gateway"]), _PeerReport())
        in_flight = {str(replica): int(count) for replica, count in message["in_flight"].items()}
        clock = self._rate_limits.clock()
        if message["number"] > report.number:  # else it is resent, and its receipt was lost
            report.number = int(message["number"])
            for agent, limit, admitted in message["admitted"]:
                self._rate_limits.absorb(agent, limit, {key: [clock - age for age in ages] for key, ages in admitted.items()})
        report.received_at, report.in_flight = now, in_flight
        self.sessions.receive(str(message["gateway"]), message.get("homes", ()), message.get("caught_up") is True, now)
        self._spread(now)

    def _spread(self, now: float) -> None:
        """Give every `LoadView` the total that the other gateways have in flight."""
        total: dict[str, int] = {}
        for report in self._reports.values():
            for replica, count in report.in_flight.items():
                total[replica] = total.get(replica, 0) + count
        for pool in self._agents.pools.values():
            for backend in pool.backends():
                pool.loads.exchanged(backend.instance, total.get(backend.member.replica, 0), now)


def _grouped(batch: list[AdmittedRequest], clock: float) -> list[tuple[str, str, dict[str, list[float]]]]:
    """Ages in seconds by key, agent by agent and limit by limit."""
    ages: dict[tuple[str, str], dict[str, list[float]]] = {}
    for admitted in batch:
        by_key = ages.setdefault((admitted.agent, admitted.limit), {})
        by_key.setdefault(admitted.key, []).append(round(clock - admitted.at, 6))
    return [(agent, limit, by_key) for (agent, limit), by_key in ages.items()]
