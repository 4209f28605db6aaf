"""The instance's ASGI application: who may ask, what is refused, and who answers: the handler or the mounted app.

Counts what is in flight (a stream counts until it ends) and tells its load with every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.messages import (
    APP_PREFIX,
    CHAT_PATH,
    CHECK_PATH,
    CLOSING,
    DRAIN_PATH,
    FULL,
    KEY_HEADER,
    KILL_PATH,
    LIMIT_HEADER,
    LOAD_HEADER,
    MESSAGES_PATH,
    PING_PATH,
    REFUSED_HEADER,
    SESSION_HEADER,
    WATCH_PATH,
    InstanceSpec,
    RegistrationReply,
)
from deployments.instance.hosted_agent import HostedAgent
from deployments.instance.replies import Replies, event
from deployments.request import openai
from deployments.request.exchange import ClientDisconnected, Exchange
from deployments.types import Message, Receive, Scope, Send, SentHeaders
from policies.errors import STATUS, AgentFailed, InstanceFailed, NotFound, RequestTimeout, SwiftClawError

log = logging.getLogger("swiftclaw.instance")

LINE_EVERY_S = 1.0
NO_LIMIT = 2**62  # the gateway has applied the body limit
_BETWEEN_US = frozenset((KEY_HEADER, LIMIT_HEADER))
NO_DEADLINE_S = 10 * 365 * 86400.0  # and keeps the time


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """One request that is being answered."""

    exchange: Exchange
    task: asyncio.Task[Any] | None
    is_cut: bool = False  # off, because its time is over


class InstanceServer:
    """One agent's HTTP side."""

    def __init__(self, agent: HostedAgent, spec: InstanceSpec, admission: RegistrationReply, replica: str) -> None:
        self._agent, self._spec, self._replica = agent, spec, replica
        self._replies = Replies(agent, spec)
        self.id = admission.id
        self._key = admission.key.encode()
        self.in_flight = 0
        self.cpu_percent = 0.0
        self.watched = 0  # open watches
        self.watched_at = time.monotonic()  # when the last one ended
        self.retire: Callable[[], None] | None = None  # drains, then ends the process; None: this is not a process of its own
        self.session_at: float | None = None  # when a request of a session last came
        self._works: set[ActiveRequest] = set()
        self._draining = self._parting = self._closing = self._ended = False
        self._checking = asyncio.Lock()
        self._news = asyncio.Event()

    def drain(self) -> None:
        """From now on the Controller is told that it leaves: gateways send nothing new, but for sessions that live here."""
        self._draining = True
        self._news.set()

    def part(self) -> None:
        """From now on the Controller is told that nobody lives here any more: gateways send nothing at all."""
        self._draining = self._parting = True
        self._news.set()

    def close(self) -> None:
        """From now on requests are refused as not executed, so that another instance takes them; what runs goes on."""
        self.part()
        self._closing = True

    def cut(self, is_overdue: Callable[[float, bool], bool]) -> None:
        """End the requests that are overdue, given when they came and whether their answer has begun; clients are told."""
        for work in list(self._works):
            if not work.is_cut and work.task is not None and is_overdue(work.exchange.started_at, work.exchange.started):
                work.is_cut = True
                work.task.cancel()

    def end(self) -> None:
        """From now on nobody watches: an open watch would keep its connection, and the port, for nothing."""
        self._ended = True
        self._news.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        headers: SentHeaders = scope["headers"]
        if not self._is_gateway(headers):
            await _forbid(scope, send)
            return
        path: str = scope["path"]
        if path == WATCH_PATH:
            await self._watch(receive, send)
            return
        if path == CHECK_PATH:
            exchange = Exchange(scope, receive, send, NO_LIMIT)
            await exchange.body()
            with contextlib.suppress(ClientDisconnected):  # who asked has given up: so does the check
                await self._until_client_leaves(exchange, self._check(exchange))
            return
        if path == PING_PATH:
            await _empty(send, 204)
            return
        if path in (KILL_PATH, DRAIN_PATH):
            await self._go(path, scope, send)
            return
        scope["headers"] = [(name, value) for name, value in headers if name not in _BETWEEN_US]
        on_arrival = self.in_flight
        if on_arrival >= _limit(headers):
            await self._refuse(Exchange(scope, receive, self._with_load(send, on_arrival), NO_LIMIT), FULL)
            return
        self.in_flight += 1
        try:
            await self._serve(scope, receive, self._with_load(send, on_arrival), path)
        finally:
            self.in_flight -= 1

    def _is_gateway(self, headers: SentHeaders) -> bool:
        return any(name == KEY_HEADER and hmac.compare_digest(value, self._key) for name, value in headers)

    def _with_load(self, send: Send, on_arrival: int) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                load = b"%d %d %d" % (self.in_flight, on_arrival, self.cpu_percent)
                message = {**message, "headers": [*message.get("headers", ()), (LOAD_HEADER, load)]}
            await send(message)

        return sending

    async def _serve(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        exchange = Exchange(scope, receive, send, NO_LIMIT)
        if exchange.header(SESSION_HEADER) is not None:
            self.session_at = exchange.started_at
        work = ActiveRequest(exchange, asyncio.current_task())
        self._works.add(work)
        try:
            if self._closing:
                await self._refuse(exchange, CLOSING)
            elif path == MESSAGES_PATH:
                await self._until_client_leaves(exchange, self._replies.message(exchange, self.id))
            elif path == CHAT_PATH:
                await self._until_client_leaves(exchange, self._replies.chat(exchange, self.id))
            elif self._agent.app is not None:
                await self._mounted(exchange, self._agent.app)
            else:
                raise NotFound("the agent has no app of its own; POST to /messages", agent=self._spec.agent)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            if not work.is_cut or work.task is None:
                raise
            uncancel(work.task)
            await self._fail(exchange, self._cut_off(exchange), path)
        except SwiftClawError as error:
            error.agent = error.agent or self._spec.agent
            await self._fail(exchange, error, path)
        except Exception as raised:
            log.exception("request %s: the agent raised", exchange.request_id)
            failed = AgentFailed(f"the agent raised {type(raised).__name__}; the instance's log knows the request id")
            failed.agent = self._spec.agent
            await self._fail(exchange, failed, path)
        finally:
            self._works.discard(work)

    def _cut_off(self, exchange: Exchange) -> SwiftClawError:
        if exchange.started:
            return InstanceFailed(f"{self.id} had to leave before the answer was complete", agent=self._spec.agent)
        return RequestTimeout(f"{self.id} had to leave and got no answer in time", agent=self._spec.agent)

    async def _until_client_leaves(self, exchange: Exchange, work: Any) -> None:
        exchange.guard(NO_DEADLINE_S)
        try:
            await work
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            raise why from None
        finally:
            exchange.done()

    async def _mounted(self, exchange: Exchange, app: Any) -> None:
        """The app sees its own paths; the prefix is told as reverse proxies do."""
        scope = exchange.scope
        prefix = len(APP_PREFIX)
        scope["path"], scope["raw_path"] = scope["path"][prefix:], scope["raw_path"][prefix:]
        kept = [(name, value) for name, value in scope["headers"] if name != SESSION_HEADER]
        scope["headers"] = [*kept, (b"x-forwarded-prefix", f"/agents/{self._spec.agent}".encode())]

        async def send(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                exchange.started = True
            await exchange.send(message)

        await app(scope, exchange.receive, send)

    async def _refuse(self, exchange: Exchange, why: bytes) -> None:
        """It is not begun: the gateway may ask another instance."""
        if exchange.scope["type"] == "websocket":
            told = [(REFUSED_HEADER, why), (b"content-length", b"0")]
            await exchange.send({"type": "websocket.http.response.start", "status": 503, "headers": told})
            await exchange.send({"type": "websocket.http.response.body", "body": b""})
            return
        await exchange.answer(503, why.decode(), [(REFUSED_HEADER, why)])

    async def _fail(self, exchange: Exchange, error: SwiftClawError, path: str) -> None:
        if exchange.scope["type"] == "websocket":
            await exchange.send({"type": "websocket.close", "code": 1011})
        elif not exchange.started:
            chat = path == CHAT_PATH
            body = openai.error_body(error, exchange.request_id) if chat else exchange.error(error)
            await exchange.answer(STATUS[error.type], body)
        elif exchange.event_stream:
            await exchange.write(b"event: error\n" + event(exchange.error(error)), more=False)

    async def _check(self, exchange: Exchange) -> None:
        """What the agent says of itself. A check that hangs is not joined by a second one."""
        if self._checking.locked():
            await exchange.answer(200, {"healthy": False, "reason": "the health check before this one has not ended"})
            return
        async with self._checking:
            healthy, reason = await self._agent.check()
        await exchange.answer(200, {"healthy": healthy, "reason": reason})

    async def _go(self, path: str, scope: Scope, send: Send) -> None:
        """The Controller takes this instance away on purpose; killed, it says nothing any more."""
        if scope["type"] != "http" or scope["method"] != "POST" or self.retire is None:
            await _forbid(scope, send)
        elif path == KILL_PATH:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            self.retire()
            await _empty(send, 202)

    async def _watch(self, receive: Receive, send: Send) -> None:
        """A line a second, and at once when something changes, for as long as the Controller listens."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
        left = asyncio.ensure_future(_disconnected(receive))
        self.watched += 1
        try:
            while not left.done() and not self._ended:
                line = {
                    "replica": self._replica,
                    "draining": self._draining,
                    "stopped": self._parting,
                    "in_flight": self.in_flight,
                    "cpu": self.cpu_percent,
                }
                await send({"type": "http.response.body", "body": json.dumps(line).encode() + b"\n", "more_body": True})
                self._news.clear()
                news = asyncio.ensure_future(self._news.wait())
                await asyncio.wait({left, news}, timeout=LINE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            if self._ended:
                await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            self.watched -= 1
            self.watched_at = time.monotonic()


def _limit(headers: SentHeaders) -> int:
    """How many requests this instance may have in flight, as the gateway says: it knows the settings of this moment."""
    for name, value in headers:
        if name == LIMIT_HEADER and value.isdigit():
            return int(value)
    return NO_LIMIT


def uncancel(task: asyncio.Task[Any]) -> None:
    """The cancellation was meant for the work, not for the task."""
    undo = getattr(task, "uncancel", None)  # Python 3.11
    if undo is not None:
        undo()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _forbid(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await _empty(send, 403)


async def _empty(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
