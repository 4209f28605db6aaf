"""One request through the gateway: a state machine that the callbacks of its client and its instance drive, without a task.

    READING ──► WAITING ──► CONNECTING ──► SENT ──► SETTLING ──► RELAYING ──► ENDED
       │           ▲  │          │           │          (only a session that has a new home)
       │           │  └─────────►│           │
       │           └─────────────┴── PAUSED ◄┘   not executed, or may be repeated: the next instance
       └──► any of them ──► ENDED                refused, timed out, or its client left

READING: the body, as far as the choice of an instance needs it. WAITING: in the wait queue, which is passed at once while there
is capacity. CONNECTING: no kept connection was left. SENT: until the response's head. SETTLING: the other gateways learn of the
session's home first. RELAYING: pieces go to the client in the callback that they arrive in. PAUSED: the back-off before another
attempt. Which instance, and whether another one, is decided elsewhere (`Pool`, `Attempts`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from deployments.balancing.backend import Lease
from deployments.proxy.client import Arrived, ClientSide
from deployments.proxy.client_request import ClientRequest
from deployments.proxy.deadlines import Deadlines
from deployments.proxy.request_body import IncomingBody, Then
from deployments.request.record import CLIENT_DISCONNECTED
from deployments.types import SentHeaders
from deployments.upstream import headers
from deployments.upstream.attempts import GATEWAY_ERRORS, LEEWAY_S, Attempts
from deployments.upstream.connection import Connection, InstanceRequest, NotConnected
from deployments.upstream.forward import TOO_MANY, Call, Forwarder
from policies.errors import (
    CLIENT_CLOSED_REQUEST,
    InstanceFailed,
    Overloaded,
    RequestTimeout,
    SwiftClawError,
)

log = logging.getLogger("swiftclaw.gateway")


class RequestState(Enum):
    """Where a request is."""

    READING = "reading its body"
    WAITING = "waiting for an instance"
    CONNECTING = "connecting"
    SENT = "sent"
    SETTLING = "sharing its session's home"
    RELAYING = "receiving the answer"
    PAUSED = "pausing before another attempt"
    ENDED = "ended"


class Routes(Protocol):
    """Who decides where requests go, and what becomes of those that go nowhere."""

    def route(self, request: ProxiedRequest) -> None:
        """Raises SwiftClawError."""

    def refuse(self, request: ProxiedRequest, error: SwiftClawError) -> None:
        """Answer with the error."""


class ProxiedRequest(ClientRequest):
    """A `RequestSide` for its client's connection, and the `Receiver` of its instance's response."""

    __slots__ = (
        "_attempts", "_call", "_connecting", "_connection", "_deadlines", "_forwarder", "_late", "_lease", "_ok", "_outgoing",
        "_resume", "_routes", "_status", "_streamed", "_waiting", "body", "ends_at", "idle_s", "state",
    )  # fmt: skip

    def __init__(self, client_side: ClientSide, arrived: Arrived, routes: Routes, deadlines: Deadlines, max_body: int) -> None:
        ClientRequest.__init__(self, client_side, arrived, max_body)
        self._routes, self._deadlines = routes, deadlines
        self.body = IncomingBody(client_side, max_body)
        self.state = RequestState.READING
        self.ends_at = math.inf  # by the running clock
        self.idle_s: float | None = None
        self._forwarder: Forwarder | None = None
        self._call: Call | None = None
        self._attempts: Attempts | None = None
        self._waiting: asyncio.Future[Lease] | None = None
        self._resume: asyncio.TimerHandle | None = None
        # --- this attempt
        self._lease: Lease | None = None
        self._outgoing: InstanceRequest | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._connection: Connection | None = None
        self._status: int | None = None  # of its response
        self._ok: bool | None = None  # the instance worked (True), failed (False), or neither is known (None)
        self._streamed = False  # the response's length is unknown
        self._late: list[Callable[[], None]] = []  # what the instance sent while the session's home settles

    def __repr__(self) -> str:
        at = f" at {self._lease.backend.member.id}" if self._lease is not None else ""
        return f"<ProxiedRequest {self.request_id} for {self.agent}: {self.state.value}{at}>"

    @property
    def ended(self) -> bool:
        return self.state is RequestState.ENDED

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step; what it raises is the answer."""
        try:
            step(*arguments)
        except SwiftClawError as error:
            self.fail(error)
        except Exception:
            log.exception("request %s failed in the gateway", self.request_id)
            self.fail(SwiftClawError("internal error; the gateway's log has the details under this request id"))

    # --- the body: READING ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._guarded(self._routes.route, self)

    def limit(self, seconds: float) -> None:
        """Set the time that is left from now, in place of the previous deadline."""
        if self.ends_at == math.inf:
            self._deadlines.add(self)
        self.ends_at = self._deadlines.clock.now() + seconds

    def read_body(self, then: Then, *, ahead: bool = False) -> None:
        """Read the body as `IncomingBody.read` does. Raises BadRequest, PayloadTooLarge."""
        self.body.read(self.check_length(), then, ahead=ahead)

    def read_whole_body(self, then: Then) -> None:
        """Raises BadRequest, PayloadTooLarge."""
        self.check_length()
        self.body.read_whole(then)

    def body_piece(self, piece: bytes) -> None:
        self._guarded(self.body.piece, piece)

    def body_end(self) -> None:
        self._guarded(self.body.end)

    # --- an instance: WAITING, CONNECTING ---------------------------------------------------------------------------

    def forward(self, call: Call, forwarder: Forwarder) -> None:
        """The request is admitted. Raises SwiftClawError."""
        pool = call.pool
        self._call, self._forwarder = call, forwarder
        self.idle_s = pool.settings.timeouts.idle_s
        self.limit(pool.settings.request_timeout_s)
        self._attempts = Attempts(self, pool, call.request, body_is_kept=not self.body.is_streamed)
        self._place()

    def _place(self) -> None:
        assert self._attempts is not None
        lease = self._attempts.take()
        if lease is not None:
            self._attempt(lease)
            return
        self.state = RequestState.WAITING
        self.limit(self._attempts.wait_timeout_s + LEEWAY_S)
        self._waiting = self._attempts.enqueue()
        self._waiting.add_done_callback(self._granted)

    def _granted(self, waiting: asyncio.Future[Lease]) -> None:
        if self._waiting is not waiting:
            return
        self._waiting = None
        if not waiting.cancelled():
            self._guarded(self._take_granted, waiting)

    def _take_granted(self, waiting: asyncio.Future[Lease]) -> None:
        assert self._attempts is not None and self._call is not None
        lease = waiting.result()
        self._attempts.granted(lease)
        self.limit(self._call.pool.settings.request_timeout_s)
        self._attempt(lease)

    def _attempt(self, lease: Lease) -> None:
        assert self._forwarder is not None and self._call is not None
        self._lease, self._status, self._ok = lease, None, None
        lease.move_elsewhere = self._move
        self._outgoing = self._forwarder.instance_request(self._call, lease, self.body.value)
        connection = self._forwarder.idle_connection(lease)
        if connection is not None:
            self._send(connection)
            return
        self.state = RequestState.CONNECTING
        self._connecting = self._forwarder.connect(lease, self._call.pool.settings.timeouts.connection_s)
        self._connecting.add_done_callback(self._connected)

    def _connected(self, connecting: asyncio.Task[Connection]) -> None:
        if self._connecting is not connecting:
            if not connecting.cancelled() and connecting.exception() is None:
                connecting.result().close()
            return
        self._connecting = None
        self._guarded(self._take_connected, connecting)

    def _take_connected(self, connecting: asyncio.Task[Connection]) -> None:
        assert self._call is not None and self._lease is not None and self._attempts is not None
        with contextlib.suppress(NotConnected):
            connection = connecting.result()
            if connection.usable:
                self._send(connection)
                return
        self._call.pool.mark_unreachable(self._lease.backend, time.monotonic())
        self._attempts.skip(self._lease)
        self._end_attempt(None, False)
        self._place()

    # --- the instance's answer: SENT, SETTLING, RELAYING ----------------------------------------------------------------

    def _send(self, connection: Connection) -> None:
        assert self._outgoing is not None
        self.state = RequestState.SENT
        self._connection = connection
        connection.send(self._outgoing, self)
        if self.body.is_streamed:
            self.body.send(connection)

    def instance_writable(self) -> None:
        self.client_side.resume_body()

    def response_head(self, status: int, received: SentHeaders) -> None:
        self._guarded(self._take_head, status, received)

    def _take_head(self, status: int, received: SentHeaders) -> None:
        lease, call, attempts = self._lease, self._call, self._attempts
        assert lease is not None and call is not None and attempts is not None and self._forwarder is not None
        head = headers.from_instance(status, received)
        self._status = status
        if head.refused is not None:
            self._not_executed(head)
            return
        ok = self._ok = None if status == TOO_MANY else status < 500
        lease.answered(time.monotonic(), head.report, failed=ok is False)
        if status in GATEWAY_ERRORS and attempts.repeats(lease):
            self._end_attempt(None, ok, keep=True)
            self._pause()
            return
        attempts.answered()
        self._streamed, self.event_stream = head.streamed, head.events
        if head.streamed:
            self.limit(call.pool.settings.timeouts.idle_s)
        returned = self._forwarder.returned_headers(call, lease, head)
        settled = self._forwarder.settling(call, lease, head.headers)
        if settled is None:
            self._relay(status, returned)
            return
        self.state = RequestState.SETTLING
        if self._connection is not None:
            self._connection.pause_reading()
        settled.add_done_callback(lambda _: self._guarded(self._settled, lease, status, returned))

    def _settled(self, lease: Lease, status: int, returned: SentHeaders) -> None:
        if self.state is not RequestState.SETTLING or self._lease is not lease:
            return
        late, self._late = self._late, []
        if self._connection is not None:
            self._connection.resume_reading()  # before anything is written: a client that does not read pauses it again
        self._relay(status, returned)
        for step in late:
            step()
        if not self.ended:
            self.client_side.flush()

    def _relay(self, status: int, returned: SentHeaders) -> None:
        self.state = RequestState.RELAYING
        self.start(status, returned)

    def response_piece(self, piece: bytes) -> None:
        if self.state is RequestState.RELAYING:
            if self._streamed and self._call is not None:
                self.ends_at = self._deadlines.clock.now() + self._call.pool.settings.timeouts.idle_s
            self.client_side.write(piece)
        elif self.state is RequestState.SETTLING:
            self._late.append(lambda: self.response_piece(piece))

    def response_end(self) -> None:
        self._connection = None  # it may serve another request from now on
        if self.state is RequestState.SETTLING:
            self._late.append(self.response_end)
            return
        if self.state is not RequestState.RELAYING or self._lease is None or self._status is None:
            return
        self._lease.count(self._status, time.monotonic())  # before the last byte is sent: see Lease.count
        self.client_side.finish()
        self._end_attempt(self._status, self._ok)
        self.end()

    def response_passed_on(self) -> None:
        if self.state is RequestState.RELAYING:
            self.client_side.flush()

    def response_broken(self, why: str) -> None:
        self._connection = None
        if self.state is RequestState.SETTLING:
            self._late.append(lambda: self.response_broken(why))
        elif self._lease is not None and not self.ended:
            self._guarded(self._broken, why)

    def _broken(self, why: str) -> None:
        lease, attempts = self._lease, self._attempts
        assert lease is not None and attempts is not None and self._call is not None
        member, agent = lease.backend.member, self._call.pool.name
        log.warning("%s of %s broke the connection (%s), request %s", member.id, agent, why, self.request_id)
        self._ok = False
        if attempts.repeats(lease):
            self._end_attempt(None, False)
            self._pause()
            return
        self._end_attempt(502, False)
        raise InstanceFailed(f"{member.id} closed the connection before the response was complete", agent=agent)

    def client_paused(self) -> None:
        if self._connection is not None and self.state is RequestState.RELAYING:
            self._connection.pause_reading()

    def client_resumed(self) -> None:
        if self._connection is not None and self.state is RequestState.RELAYING:
            self._connection.resume_reading()

    # --- another attempt: PAUSED --------------------------------------------------------------------------------------

    def _not_executed(self, head: headers.Head) -> None:
        """The instance refused the request and has done nothing."""
        lease, attempts = self._lease, self._attempts
        assert lease is not None and attempts is not None and self._call is not None
        if self.body.is_streamed:
            self._end_attempt(None, None, keep=True)
            raise Overloaded(
                "the instance refused the request, and a streamed body cannot be sent again", agent=self._call.pool.name
            )
        attempts.refused(lease, head)
        self._end_attempt(None, None, keep=True)
        self._place()

    def _move(self) -> bool:
        """The instance was given up while the request waits for it. True: another one will be tried."""
        lease = self._lease
        if lease is None or self._attempts is None or self.state not in (RequestState.SENT, RequestState.CONNECTING):
            return False
        if not self._attempts.repeats(lease):
            return False
        asyncio.get_running_loop().call_soon(self._moved, lease)
        return True

    def _moved(self, lease: Lease) -> None:
        if self._lease is lease and self.state in (RequestState.SENT, RequestState.CONNECTING):
            self._end_attempt(None, None)
            self._guarded(self._pause)

    def _pause(self) -> None:
        assert self._attempts is not None
        self.state = RequestState.PAUSED
        self._resume = asyncio.get_running_loop().call_later(self._attempts.backoff_s, self._again)

    def _again(self) -> None:
        self._resume = None
        self._guarded(self._place)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end_attempt(self, code: int | None, ok: bool | None, *, keep: bool = False) -> None:
        """Release the lease. `code` None: the request goes on elsewhere, or is counted elsewhere. `keep`: the connection's
        response is not wanted, but it may be short, and the connection of use."""
        lease, self._lease = self._lease, None
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            if keep:
                connection.discard()
            else:
                connection.abort()
        self._late = []
        if lease is None:
            return
        lease.move_elsewhere = None
        lease.release(code, time.monotonic(), ok)
        self.counted = self.counted or code is not None
        for observer in self.observers:
            observer.attempt_ended(self._status, ok, lease.first_byte_at)

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._attempts is not None:
            self._attempts.leave_queue()
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None

    def client_left(self) -> None:
        self.failure = CLIENT_DISCONNECTED
        self._stop_waiting()
        self._end_attempt(CLIENT_CLOSED_REQUEST, None)
        self.end()

    def expired(self) -> None:
        """The deadline has passed."""
        self.ends_at = math.inf
        self._deadlines.discard(self)
        call = self._call
        self._stop_waiting()
        if call is None:
            self.fail(RequestTimeout("the request body did not arrive in time"))
            return
        self._end_attempt(504, None if self.started else False)  # once started, the client may be the one that does not read
        self.fail(RequestTimeout(self._too_long(call), agent=call.pool.name))

    def _too_long(self, call: Call) -> str:
        settings = call.pool.settings
        if self.started:
            return (
                f"the response was cut off: no data for {settings.timeouts.idle_s:g} s, or not complete within the request "
                "timeout"
            )
        return f"no response within {settings.request_timeout_s:g} s"

    def fail(self, error: SwiftClawError) -> None:
        """Answer with the error, whatever the state."""
        if self.ended:
            return
        self._stop_waiting()
        self._end_attempt(None, None)
        self._routes.refuse(self, error)

    def end(self) -> None:
        if self.ended:
            return
        self.state = RequestState.ENDED
        self.body.stop()
        if self.ends_at != math.inf:
            self._deadlines.discard(self)
        if self._attempts is not None:
            self._attempts.end()
        for observer in self.observers:
            observer.ended(self)
        # What refers back to this request is let go: it is freed at once, and costs the garbage collector nothing.
        self._call = self._attempts = self._outgoing = self.with_headers = None
        self.observers = ()
        if self.failure != CLIENT_DISCONNECTED:
            self.client_side.done()
