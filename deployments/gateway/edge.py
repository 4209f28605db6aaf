"""The public port: which agent and path does a request address? Every refusal leaves here as a named error.

HTTP arrives from the connections of clients as a `ProxiedRequest`, a WebSocket as an ASGI scope. Both pass the same checks.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial

from uvicorn.protocols.utils import ClientDisconnected as UvicornClientDisconnected

from cluster.config import CorsSettings
from cluster.messages import APP_PREFIX, CHAT_PATH, MESSAGES_PATH
from deployments.balancing.agents import AgentTable
from deployments.balancing.pool import Pool
from deployments.gateway.admission import RateLimits, in_chat, in_message
from deployments.gateway.cors import CorsPolicy
from deployments.gateway.reporter import Reporter
from deployments.proxy.client import Arrived, ClientSide
from deployments.proxy.deadlines import Deadlines
from deployments.proxy.proxied_request import ProxiedRequest
from deployments.request import json_body, openai, sessions, tracing
from deployments.request.access_log import AccessLine
from deployments.request.exchange import ClientDisconnected, Exchange
from deployments.request.record import CLIENT_DISCONNECTED, READ_AHEAD, RequestRecord
from deployments.request.responses import deny_websocket, retry_after
from deployments.types import Receive, Scope, Send
from deployments.upstream.connection_pool import ConnectionPool
from deployments.upstream.forward import Call, Forwarder, HomeSharing
from deployments.upstream.websocket import WebSocketForwarder
from policies.base import Request
from policies.errors import HeadersTooLarge, MethodNotAllowed, NotFound, RequestTimeout, SwiftClawError

log = logging.getLogger("swiftclaw.gateway")

CHAT_BODY_S = 60.0  # for the body of a chat request, which names the agent
_MOST_HOPS = 1000  # of Max-Forwards
HEADER_LIMIT = 64 * 1024  # bytes of all request headers together


class Edge:
    """One gateway's routes. Needs a running event loop."""

    def __init__(self, agents: AgentTable, reporter: Reporter, connections: ConnectionPool, region: str) -> None:
        self._agents = agents
        self._reporter = reporter
        self._region = region
        self._deadlines = Deadlines()
        self.tracing = tracing.of_process()
        self.rate_limits = RateLimits(agents)
        self._forwarder = Forwarder(agents, connections)
        self._websockets = WebSocketForwarder(connections, self._forwarder)
        self._cors_settings: CorsSettings | None = None  # those in force
        self._cors_policy: CorsPolicy | None = None

    def share_homes(self, sharing: HomeSharing) -> None:
        """There are other gateways, which must agree on where sessions live."""
        self._forwarder.sharing = sharing

    # --- HTTP -------------------------------------------------------------------------------------------------------

    def receive(self, arrived: Arrived, client: ClientSide) -> ProxiedRequest:
        """The request of what has arrived; its turn is told by `ProxiedRequest.begin`."""
        snapshot = self._agents.snapshot
        max_body = snapshot.http.max_body_bytes if snapshot else READ_AHEAD
        return ProxiedRequest(client, arrived, self, self._deadlines, max_body)

    def route(self, request: ProxiedRequest) -> None:
        """Raises SwiftClawError."""
        cors = self._cors()
        if cors is not None:
            request.with_headers = partial(cors.headers, request)
        self._observe(request)
        _check_size(request)
        path = request.path
        if cors is not None and cors.is_preflight(request):
            request.answer(200, "OK", cors.preflight(request))
        elif path.startswith(b"/agents/"):
            self._agent(request)
        elif path == b"/v1/chat/completions":
            self._chat(request)
        elif path == b"/v1/models" or path.startswith(b"/v1/models/"):
            self._models(request)
        elif path == b"/-/healthz":
            _only(request, "GET", "HEAD")
            ready = self._agents.snapshot is not None and all(p.ready or p.at_zero for p in self._agents.pools.values())
            request.answer(200 if ready else 503, "success" if ready else "at least one agent has no healthy instance")
        elif path == b"/-/routes":
            _only(request, "GET", "HEAD")
            request.answer(200, {f"/agents/{name}": name for name in self._agents.pools})
        elif path == b"*":  # OPTIONS for the gateway as a whole
            request.answer(200, "")
        else:
            raise NotFound(f"no route matches {path.decode('latin-1')}")

    def _agent(self, request: ProxiedRequest) -> None:
        pool, rest = self._addressed(request)
        if rest == b"/messages":
            _only(request, "POST")
            request.limit(pool.settings.request_timeout_s)
            request.read_body(partial(self._message, request, pool), ahead=True)
        else:
            self.rate_limits.admit(request, pool.name)
            request.limit(pool.settings.request_timeout_s)
            request.read_body(partial(self._app, request, pool, rest))

    def _message(self, request: ProxiedRequest, pool: Pool, read: bytes) -> None:
        """`read`: the body, or its beginning."""
        self.rate_limits.admit(request, pool.name, partial(in_message, read))
        json_body.check_depth(read)
        session = sessions.in_message(read) if pool.affinity else None
        request.forward(self._call(request, pool, MESSAGES_PATH, session), self._forwarder)

    def _app(self, request: ProxiedRequest, pool: Pool, rest: bytes, _: bytes) -> None:
        if request.method == "OPTIONS" and _is_last_hop(request):
            request.answer(200, "")
        else:
            request.forward(self._call(request, pool, _app_path(request, rest)), self._forwarder)

    def _chat(self, request: ProxiedRequest) -> None:
        """The model names the agent, so the whole body is read: clients may put `model` behind long messages."""
        _only(request, "POST")
        request.limit(CHAT_BODY_S)
        request.read_whole_body(partial(self._chat_read, request))

    def _chat_read(self, request: ProxiedRequest, body: bytes) -> None:
        chat = json_body.parse(body)
        if not isinstance(chat.get("model"), str):
            raise openai.BadField("model", "must be the name of an agent")
        pool = self._agents.pool(chat["model"])
        self._assign(request, pool)
        self.rate_limits.admit(request, pool.name, partial(in_chat, chat))
        request.forward(self._call(request, pool, CHAT_PATH, sessions.in_chat(chat)), self._forwarder)

    def _models(self, request: ProxiedRequest) -> None:
        _only(request, "GET", "HEAD")
        name = request.path[len(b"/v1/models/") :].decode("latin-1")
        if not name:
            request.answer(200, openai.model_list(list(self._agents.pools)))
            return
        self._agents.pool(name)
        request.answer(200, openai.model(name))

    def refuse(self, request: ProxiedRequest, error: SwiftClawError) -> None:
        self._count_refusal(request, error)
        if request.started:
            request.break_off(error)
            return
        headers = retry_after(error)
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode()))
        elif isinstance(error, HeadersTooLarge):
            headers.append((b"connection", b"close"))
        request.answer(error.status, request.error(error), headers)

    # --- both -------------------------------------------------------------------------------------------------------

    def _observe(self, record: RequestRecord) -> None:
        if self.tracing is not None and not record.path.startswith(b"/-/"):
            self.tracing.observe(record)

    def _cors(self) -> CorsPolicy | None:
        settings = self._agents.snapshot.http.cors if self._agents.snapshot else None
        if settings is not self._cors_settings:
            self._cors_settings = settings
            self._cors_policy = None if settings is None else CorsPolicy(settings)
        return self._cors_policy

    def _addressed(self, record: RequestRecord) -> tuple[Pool, bytes]:
        """`/agents/NAME/rest` -> the agent's pool and `/rest`."""
        name, slash, rest = record.path[len(b"/agents/") :].partition(b"/")
        pool = self._agents.pool(name.decode("latin-1"))
        self._assign(record, pool)
        return pool, slash + rest

    @staticmethod
    def _assign(record: RequestRecord, pool: Pool) -> None:
        """The request is for this agent."""
        record.agent = pool.name
        if pool.settings.access_log.enabled:
            line = AccessLine(pool.name, pool.settings.access_log, pool.settings.load_balancing.strategy, pool.rng)
            record.observers = (*record.observers, line)

    def _call(self, record: RequestRecord, pool: Pool, path: str, in_body: str | None = None) -> Call:
        """The admitted request, with everything that the choice of an instance may depend on."""
        clients = self._agents.clients
        peer = record.client[0] if record.client else None
        address = clients.address(peer, record.headers)
        session = sessions.resolve(record, pool, in_body, address)
        region = clients.region(peer, record.headers) if pool.by_client else None
        request = Request(
            agent=pool.name,
            session=session.name,
            region=region or self._region,
            now=record.started_at,
            pin=session.token.instance if session.token else None,
            fresh=session.fresh,
            version=pool.version_for(session.name, session.token, fresh=session.fresh),
        )
        return Call(record, pool, request, path, session)

    def _count_refusal(self, record: RequestRecord, error: SwiftClawError) -> None:
        record.failure = error.type
        if not record.counted:
            self._reporter.refused(error)
        self.rate_limits.add_headers(record)

    # --- WebSockets -------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One WebSocket, as an ASGI application."""
        exchange = Exchange(scope, receive, send, READ_AHEAD)
        self._observe(exchange)
        try:
            _check_size(exchange)
            if not exchange.path.startswith(b"/agents/"):
                raise NotFound(f"no WebSocket route matches {exchange.path.decode('latin-1')}")
            pool, rest = self._addressed(exchange)
            self.rate_limits.admit(exchange, pool.name)
            await self._websockets.serve(exchange, self._call(exchange, pool, _app_path(exchange, rest)))
        except (ClientDisconnected, UvicornClientDisconnected):
            exchange.failure = CLIENT_DISCONNECTED
        except SwiftClawError as error:
            await self._refuse_websocket(exchange, error)
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            if isinstance(why, ClientDisconnected):
                exchange.failure = CLIENT_DISCONNECTED
            else:
                await self._refuse_websocket(exchange, RequestTimeout("the request body did not arrive in time"))
        except Exception:
            log.exception("request %s failed in the gateway", exchange.request_id)
            await self._refuse_websocket(
                exchange, SwiftClawError("internal error; the gateway's log has the details under this request id")
            )
        finally:
            for observer in exchange.observers:
                observer.ended(exchange)

    async def _refuse_websocket(self, exchange: Exchange, error: SwiftClawError) -> None:
        self._count_refusal(exchange, error)
        exchange.done()
        exchange.status = exchange.status or error.status
        content = json.dumps(exchange.error(error)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"x-request-id", exchange.request_id.encode()),
            *exchange.response_headers,
            *retry_after(error),
        ]
        await deny_websocket(exchange.scope, exchange.send, error.status, headers, content, reason=error.message[:120])


def _check_size(record: RequestRecord) -> None:
    """Raises HeadersTooLarge."""
    if sum([len(name) + len(value) for name, value in record.headers]) > HEADER_LIMIT:
        raise HeadersTooLarge(f"the request headers exceed {HEADER_LIMIT} bytes")


def _only(record: RequestRecord, *methods: str) -> None:
    if record.method not in methods:
        raise MethodNotAllowed(
            f"method {record.method} is not allowed here; use {' or '.join(methods)}", allowed=", ".join(methods)
        )


def _is_last_hop(record: RequestRecord) -> bool:
    """Whether `Max-Forwards` ends the request here (RFC 9110, section 7.6.2); else it is one less for the next hop."""
    left = record.header(b"max-forwards")
    if left is None or not left.isdigit():
        return False
    hops = min(int(left[:9]), _MOST_HOPS) if len(left) < 10 else _MOST_HOPS
    fewer = str(hops - 1).encode()
    record.headers = [(name, fewer if name == b"max-forwards" else value) for name, value in record.headers]
    return hops == 0


def _app_path(record: RequestRecord, rest: bytes) -> str:
    path = APP_PREFIX + (rest or b"/").decode("latin-1")
    return f"{path}?{record.query.decode('latin-1')}" if record.query else path
