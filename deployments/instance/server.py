"""The instance's ASGI application: authenticates the gateway, refuses what it cannot take, and lets the agent answer.

Paths under `/-/` are for the Controller and are not counted. Every other request is one of the agent's: it is answered by the
handler or the mounted app, counts as in flight until it (or its stream) and its threads end, and its answer reports the load.
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cluster.messages import (
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
from cluster.telemetry.tally import Tally
from deployments.instance.hosted_agent import HostedAgent
from deployments.instance.lifecycle import Lifecycle
from deployments.instance.mounted_app import MountedApp
from deployments.instance.named_errors import ends_task, named_error
from deployments.instance.replies import Replies
from deployments.instance.threads import RequestSlot, current_slot
from deployments.request.exchange import ClientDisconnected, Exchange, uncancel
from deployments.request.responses import deny_websocket, retry_after, send_empty
from deployments.types import Message, Receive, Scope, Send, SentHeaders
from policies.errors import AgentFailed, AgentRefused, InstanceFailed, NotFound, RequestTimeout, SwiftClawError

log = logging.getLogger("swiftclaw.instance")

WATCH_LINE_S = 1.0
NO_LIMIT = 2**62  # the gateway has applied the body limit
_HEADS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))  # they report the load


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """One request that is being answered."""

    exchange: Exchange
    task: asyncio.Task[Any] | None
    cancelled: bool = False  # by `cancel_overdue`


class InstanceServer:
    """The HTTP side of one instance of an agent. `id` changes if the Controller gives the instance another name."""

    def __init__(
        self,
        agent: HostedAgent,
        spec: InstanceSpec,
        reply: RegistrationReply,
        replica: str,
        app_state: dict[str, Any] | None = None,
    ) -> None:
        """`app_state`: of the mounted app's lifespan."""
        self._agent, self._spec, self._replica = agent, spec, replica
        self.id = reply.id
        self._key = reply.key.encode()
        self.in_flight = 0  # requests, and what still runs in threads of requests that have ended
        self.tally = Tally()  # the agent's requests that were answered
        self.cpu_percent = 0.0
        self.watchers = 0  # open watches
        self.unwatched_since = time.monotonic()  # when the last watch ended
        self.retire: Callable[[], None] | None = None  # drains, then ends the process; None: this is not a process of its own
        self.session_at: float | None = None  # when the newest request of a session arrived
        self.stage = Lifecycle.SERVING
        self._active: set[ActiveRequest] = set()
        self._health_check = asyncio.Lock()
        self._stage_changed = asyncio.Event()
        self._app = MountedApp(agent.app, spec.agent, app_state or {}) if agent.app is not None else None
        replies = Replies(agent, spec)
        self._agent_routes = {MESSAGES_PATH: replies.message, CHAT_PATH: replies.chat}
        self._control_routes = {
            WATCH_PATH: self._watch,
            CHECK_PATH: self._check,
            PING_PATH: self._ping,
            KILL_PATH: self._kill,
            DRAIN_PATH: self._drain,
        }

    def __repr__(self) -> str:
        of = f"{self.id} of {self._spec.agent} {self._spec.version} in {self._spec.region}"
        stage = self.stage.name.lower().replace("_", " ")
        return f"<InstanceServer {of}: {stage}, {self.in_flight} in flight, {self.watchers} watching>"

    def advance(self, stage: Lifecycle) -> None:
        """Enter a stage, and report it to the Controller at once. One that is past already changes nothing."""
        self.stage = max(self.stage, stage)
        self._stage_changed.set()

    def cancel_overdue(self, is_overdue: Callable[[float, bool], bool]) -> None:
        """Cancel overdue requests; their clients get an error.

        `is_overdue` gets when a request arrived, and whether its answer has started.
        """
        for active in list(self._active):
            exchange = active.exchange
            if not active.cancelled and active.task is not None and is_overdue(exchange.started_at, exchange.started):
                active.cancelled = True
                if exchange.on_cancelled is not None:
                    exchange.on_cancelled()
                active.task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        headers, key, limit = _without_gateways_own(scope["headers"])
        if not hmac.compare_digest(key, self._key):  # it is neither from a gateway nor from the Controller
            await _forbid(scope, send)
        elif (control := self._control_routes.get(scope["path"])) is not None:
            await control(scope, receive, send)
        else:
            scope["headers"] = headers
            await self._admit(scope, receive, send, limit)

    # --- requests of the agent ------------------------------------------------------------------------------------

    async def _admit(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Answer and count a request, or refuse it above the limit that its gateway names."""
        on_arrival = self.in_flight
        exchange = Exchange(scope, receive, send, NO_LIMIT)
        exchange.send = self._with_load(exchange, send, on_arrival)
        if on_arrival >= limit:
            await self._refuse(exchange, FULL)
            return
        self.in_flight += 1
        slot = RequestSlot(self._slot_freed)
        current_slot.set(slot)
        try:
            await self._serve(exchange, scope["path"])
        finally:
            slot.leave()

    def _slot_freed(self) -> None:
        self.in_flight -= 1

    def _with_load(self, exchange: Exchange, send: Send, on_arrival: int) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] in _HEADS:
                exchange.status = message.get("status", 101)  # only a WebSocket's has none
                load = b"%d %d %d" % (self.in_flight, on_arrival, self.cpu_percent)
                # The server frames the body: an app that copies another's headers must not frame it a second time (ASGI).
                headers = [header for header in message.get("headers", ()) if header[0].lower() != b"transfer-encoding"]
                headers.append((LOAD_HEADER, load))
                message = {**message, "headers": headers}
            await send(message)

        return sending

    async def _serve(self, exchange: Exchange, path: str) -> None:
        """Answer a request, with an error if need be."""
        if exchange.header(SESSION_HEADER) is not None:
            self.session_at = exchange.started_at
        exchange.is_openai = path == CHAT_PATH
        active = ActiveRequest(exchange, asyncio.current_task())
        self._active.add(active)
        try:
            await self._answer(exchange, path)
        except ClientDisconnected:
            return
        except BaseException as error:  # the agent's code may raise SystemExit, or a CancelledError of a task of its own
            cancelled = isinstance(error, asyncio.CancelledError)
            if ends_task(error, active.task) and not active.cancelled and (error.args or not cancelled):
                raise  # by the server, which says why; one without a word is the agent's, of its own task
            if cancelled and active.task is not None:
                uncancel(active.task)
            overdue = cancelled and active.cancelled
            await self._fail(exchange, self._cancellation(exchange) if overdue else self._named(error, exchange))
        finally:
            self._active.discard(active)
            if exchange.status:
                self.tally.add(exchange.status, time.monotonic() - exchange.started_at, None)

    async def _answer(self, exchange: Exchange, path: str) -> None:
        """Raises SwiftClawError, ClientDisconnected, or what the agent raised."""
        if self.stage >= Lifecycle.CLOSING:
            await self._refuse(exchange, CLOSING)
        elif (route := self._agent_routes.get(path)) is not None:
            await self._while_connected(exchange, route(exchange, self.id))
        elif self._app is not None:
            await self._app.answer(exchange)
        else:
            agent = self._spec.agent
            raise NotFound(f"{agent} has no mounted app; messages are sent with POST /agents/{agent}/messages", agent=agent)

    async def _while_connected(self, exchange: Exchange, answer: Awaitable[None]) -> None:
        """Await the answer, and cancel it when the client disconnects. Raises ClientDisconnected."""
        exchange.guard()  # the gateway keeps the deadlines
        try:
            await answer
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            raise why from None
        finally:
            exchange.done()

    async def _refuse(self, exchange: Exchange, why: bytes) -> None:
        """Answer that the request was not executed: the gateway may ask another instance."""
        if exchange.scope["type"] == "websocket":
            headers = [(REFUSED_HEADER, why), (b"content-length", b"0")]
            await deny_websocket(exchange.scope, exchange.send, 503, headers)
        else:
            await exchange.answer(503, why.decode(), [(REFUSED_HEADER, why)])
        exchange.status = 0  # not executed, not counted

    def _cancellation(self, exchange: Exchange) -> SwiftClawError:
        """The error of a request that `cancel_overdue` ended."""
        if exchange.started:
            return InstanceFailed(f"{self.id} was stopped before the answer was complete", agent=self._spec.agent)
        return RequestTimeout(f"{self.id} was stopped before the request was answered", agent=self._spec.agent)

    def _named(self, error: BaseException, exchange: Exchange) -> SwiftClawError:
        """The error that the client gets; what the agent raised goes to the log only."""
        named = named_error(error)
        if named is None:
            log.exception("request %s: the agent's code raised an exception", exchange.request_id)
            where = "the traceback is in the instance's log, with this request id"
            named = AgentFailed(f"the agent's code raised {type(error).__name__}; {where}")
        elif named is not error:
            level = logging.DEBUG if isinstance(named, AgentRefused) and named.status < 500 else logging.WARNING
            log.log(level, "request %s: %s: %s", exchange.request_id, named.type, error)
        named.agent = named.agent or self._spec.agent
        return named

    async def _fail(self, exchange: Exchange, error: SwiftClawError) -> None:
        exchange.status = error.status  # as it is counted, also when the head has been sent
        if exchange.scope["type"] == "websocket":
            await _fail_websocket(exchange, error)
        elif exchange.started:
            await exchange.end_broken(error)
        elif error.status in (204, 304):
            await exchange.start(error.status, error.headers)
            await exchange.write(b"", more=False)
        else:
            await exchange.answer(error.status, exchange.error(error), [*retry_after(error), *error.headers])

    # --- requests of the Controller -------------------------------------------------------------------------------

    async def _ping(self, _: Scope, __: Receive, send: Send) -> None:
        await send_empty(send, 204)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the agent's health check; it ends if the Controller stops waiting for it."""
        exchange = Exchange(scope, receive, send, NO_LIMIT)
        await exchange.whole_body()
        with contextlib.suppress(ClientDisconnected):
            await self._while_connected(exchange, self._run_health_check(exchange))

    async def _run_health_check(self, exchange: Exchange) -> None:
        if self._health_check.locked():  # a check that hangs is not joined by a second one
            await exchange.answer(200, {"healthy": False, "reason": "the previous health check is still running"})
            return
        async with self._health_check:
            healthy, reason = await self._agent.check()
        await exchange.answer(200, {"healthy": healthy, "reason": reason})

    async def _kill(self, scope: Scope, _: Receive, send: Send) -> None:
        """End the process as a crash would: no answer, no drain."""
        if self._may_be_removed(scope):
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            await _forbid(scope, send)

    async def _drain(self, scope: Scope, _: Receive, send: Send) -> None:
        """Drain, then end the process."""
        if self.retire is not None and self._may_be_removed(scope):
            self.retire()
            await send_empty(send, 202)
        else:
            await _forbid(scope, send)

    def _may_be_removed(self, scope: Scope) -> bool:
        return scope["type"] == "http" and scope["method"] == "POST" and self.retire is not None

    async def _watch(self, _: Scope, receive: Receive, send: Send) -> None:
        """Report stage and load: a line per second, and one at once when the stage changes, until either side ends it."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
        disconnected = asyncio.ensure_future(_disconnected(receive))
        self.watchers += 1
        try:
            while not disconnected.done() and self.stage < Lifecycle.ENDED:
                line = json.dumps(self._report()).encode() + b"\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})
                self._stage_changed.clear()
                changed = asyncio.ensure_future(self._stage_changed.wait())
                await asyncio.wait({disconnected, changed}, timeout=WATCH_LINE_S, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            if self.stage is Lifecycle.ENDED:
                await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()
            self.watchers -= 1
            self.unwatched_since = time.monotonic()

    def _report(self) -> dict[str, object]:
        return {
            "replica": self._replica,
            "draining": self.stage >= Lifecycle.DRAINING,
            "stopped": self.stage >= Lifecycle.STOPPED_ACCEPTING,
            "in_flight": self.in_flight,
            "cpu": self.cpu_percent,
        }


def _without_gateways_own(headers: SentHeaders) -> tuple[SentHeaders, bytes, int]:
    """The headers that the agent may see; the cluster's key; the most requests that may be in flight here, by the gateway's
    newest settings."""
    shown, key, limit = [], b"", NO_LIMIT
    for header in headers:
        name = header[0]
        if name == KEY_HEADER:
            key = header[1]
        elif name == LIMIT_HEADER:
            if header[1].isdigit():
                limit = int(header[1])
        else:
            shown.append(header)
    return shown, key, limit


async def _fail_websocket(exchange: Exchange, error: SwiftClawError) -> None:
    """Decline the handshake with the error's status, or close with 1011 what was open."""
    if exchange.started:
        with contextlib.suppress(RuntimeError):  # the app has closed it already
            await exchange.send({"type": "websocket.close", "code": 1011, "reason": error.type})
        return
    body = json.dumps(exchange.error(error)).encode()
    headers = [(b"content-type", b"application/json")]
    await deny_websocket(exchange.scope, exchange.send, error.status, headers, body, error.type)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _forbid(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await deny_websocket(scope, send, 403)
    else:
        await send_empty(send, 403)
