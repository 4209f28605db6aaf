"""What gateways tell each other, directly: whom they have admitted, and what they have in flight on each instance.

So that a rate limit holds over all of them up to one exchange, and `LoadView` knows of the others' requests before an
answer brings the count. Every EVERY_S, while there is something to tell, each gateway posts to each other one; a peer that
does not answer has a task, a time limit and a bounded backlog of its own, and holds up nobody. Times travel as ages: no
two clocks need agree. Who the peers are says the snapshot. Source: gossip of counters as in distributed rate limiting
(Raghavan et al., Cloud Control with Distributed Rate Limiting, SIGCOMM 2007), every pair told in full for exactness.
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
from deployments.gateway.rate_limits import AdmittedRequest, RateLimits
from deployments.request.cluster_key import carries_key
from deployments.request.exchange import ClientDisconnected, Exchange
from deployments.request.responses import deny_websocket, send_empty
from deployments.types import Receive, Scope, Send
from deployments.upstream.connection_pool import ConnectionPool
from policies.errors import PayloadTooLarge, SwiftClawError

log = logging.getLogger("swiftclaw.gateway")

EVERY_S = 0.1
PATIENCE_S = 1.0  # for an answer
AGAIN_S = 0.5  # after one that did not come
SILENT_S = 1.0  # who has requests in flight says so every EVERY_S: after this long it has none, or is no more
LEFT_OUT_S = 30.0  # a Controller that has just started knows only some of the gateways: they go on telling each other
BACKLOG = 100_000  # admissions kept for a peer that does not answer, and for one that is new
BATCH = 5_000  # admissions in one message
LARGEST = 4 * 2**20  # bytes of a message


@dataclass
class _Link:
    """The way to one peer. `batch` is under way until it was received; sent again, it has the same number."""

    peer: Peer
    backlog: deque[AdmittedRequest]
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    batch: list[AdmittedRequest] = field(default_factory=list)
    number: int = 0
    named_at: float = 0.0  # when a snapshot last named it
    task: asyncio.Task[None] | None = None


@dataclass
class _PeerReport:
    """What one peer last said."""

    number: int = 0
    heard_at: float = 0.0
    in_flight: dict[str, int] = field(default_factory=dict)  # by replica


class Peers:
    """One gateway's links to the others."""

    def __init__(self, gateway: str, agents: AgentTable, rate_limits: RateLimits, connections: ConnectionPool) -> None:
        self._gateway = gateway
        self._agents, self._rate_limits, self._connections = agents, rate_limits, connections
        self._links: dict[str, _Link] = {}
        self._words: dict[str, _PeerReport] = {}
        self._recent: deque[AdmittedRequest] = deque(maxlen=BACKLOG)  # for gateways that are new
        self._in_flight: dict[str, int] = {}  # here, by replica, as last told
        self._task: asyncio.Task[None] | None = None
        self._listener: Listener | None = None

    async def open(self, host: str) -> int:
        """Listen for the others, on a free port, which is returned."""
        self._listener = Listener(self, bind(host, 0), grace_s=0)
        await self._listener.start()
        self._task = asyncio.create_task(self._tell_for_ever())
        return self._listener.port

    async def close(self) -> None:
        tasks = [task for task in (self._task, *(link.task for link in self._links.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()

    # --- telling --------------------------------------------------------------------------------------------------

    async def _tell_for_ever(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                self.tick(time.monotonic())
            except Exception:  # the next round tries again
                log.exception("a round of telling the other gateways failed")

    def tick(self, now: float) -> None:
        """Hand what is new to the links, and forget who has fallen silent."""
        self._rate_limits.sweep()
        self._meet(now)
        new = self._rate_limits.drain()
        before, self._in_flight = self._in_flight, self._own()
        for link in self._links.values():
            link.backlog.extend(new)
            if link.backlog or link.batch or self._in_flight or before:
                link.wake.set()
        self._recent.extend(new)
        silent = [word for word in self._words.values() if word.in_flight and now - word.heard_at > SILENT_S]
        for word in silent:
            word.in_flight = {}
        if silent:
            self._spread(now)

    def _meet(self, now: float) -> None:
        """A link to everyone whom the snapshot names, or has named lately. A new one is told what others were told before."""
        snapshot = self._agents.snapshot
        for peer in snapshot.peers if snapshot else ():
            if peer.gateway == self._gateway:
                continue
            link = self._links.get(peer.gateway)
            if link is None:
                link = self._links[peer.gateway] = _Link(peer, deque(self._recent, maxlen=BACKLOG))
                link.task = asyncio.create_task(self._serve(link))
            link.named_at = now
        for name in [name for name, link in self._links.items() if now - link.named_at > LEFT_OUT_S]:
            task = self._links.pop(name).task
            if task is not None:
                task.cancel()
        for name in [name for name, word in self._words.items() if now - word.heard_at > LEFT_OUT_S]:
            del self._words[name]

    def _own(self) -> dict[str, int]:
        """Requests in flight from here, by replica; only those that have any."""
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
            try:
                received = await asyncio.wait_for(self._send(link), PATIENCE_S)
            except Exception as error:  # it is away; it comes back, or a snapshot leaves it out
                log.debug("gateway %s was not told: %r", link.peer.gateway, error)
                received = False
            if not received:
                await asyncio.sleep(AGAIN_S)
                continue
            link.batch = []
            if link.backlog:
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
            },
            separators=(",", ":"),
        )
        answer = await self._connections.request(
            "POST", peer.host, peer.port, PEERS_PATH, [(KEY_HEADER, snapshot.key.encode())], message.encode(), PATIENCE_S
        )
        try:
            answer.whole()
            return answer.status == 204
        finally:
            answer.close()

    # --- listening ------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The private port. What it does not understand changes nothing."""
        exchange = Exchange(scope, receive, send, LARGEST)
        if scope["type"] != "http":
            await deny_websocket(scope, send, 403)
        elif not self._is_gateway(exchange):
            await send_empty(send, 403)
        elif exchange.path != PEERS_PATH.encode() or exchange.method != "POST":
            await send_empty(send, 404)
        else:
            with contextlib.suppress(ClientDisconnected):
                await send_empty(send, await self._understood(exchange))

    def _is_gateway(self, exchange: Exchange) -> bool:
        snapshot = self._agents.snapshot
        return snapshot is not None and carries_key(exchange.headers, snapshot.key.encode())

    async def _understood(self, exchange: Exchange) -> int:
        try:
            exchange.check_length()
            self.hear(json.loads(await exchange.whole_body()), time.monotonic())
        except PayloadTooLarge:
            return 413
        except (SwiftClawError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("a gateway said something that makes no sense: %r", error)
            return 400
        return 204

    def hear(self, message: Mapping[str, Any], now: float) -> None:
        """A peer's word. Raises what a wrong shape raises."""
        word = self._words.setdefault(str(message["gateway"]), _PeerReport())
        in_flight = {str(replica): int(count) for replica, count in message["in_flight"].items()}
        clock = self._rate_limits.clock()
        if message["number"] > word.number:  # else it came before, and its receipt was lost
            word.number = int(message["number"])
            for agent, limit, admitted in message["admitted"]:
                self._rate_limits.absorb(agent, limit, {key: [clock - age for age in ages] for key, ages in admitted.items()})
        word.heard_at, word.in_flight = now, in_flight
        self._spread(now)

    def _spread(self, now: float) -> None:
        """Tell every `LoadView` what the others together have in flight."""
        total: dict[str, int] = {}
        for word in self._words.values():
            for replica, count in word.in_flight.items():
                total[replica] = total.get(replica, 0) + count
        for pool in self._agents.pools.values():
            for backend in pool.backends():
                pool.loads.exchanged(backend.instance, total.get(backend.member.replica, 0), now)


def _grouped(batch: list[AdmittedRequest], clock: float) -> list[tuple[str, str, dict[str, list[float]]]]:
    """Ages in seconds by key, agent by agent and limit by limit."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for told in batch:
        found.setdefault((told.agent, told.limit), {}).setdefault(told.key, []).append(round(clock - told.at, 6))
    return [(agent, limit, admitted) for (agent, limit), admitted in found.items()]
