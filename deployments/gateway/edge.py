"""The public port: which agent and path does a request address? Every refusal leaves here as a named error.

A plain ASGI application without a framework, because every request passes through it.
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
from deployments.request import json_body, openai, sessions, tracing
from deployments.request.access_log import AccessLine
from deployments.request.exchange import CLIENT_DISCONNECTED, READ_AHEAD, ClientDisconnected, Exchange
from deployments.request.responses import deny_websocket, retry_after
from deployments.types import Body, Receive, Scope, Send
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
    """One gateway's ASGI application."""

    def __init__(self, agents: AgentTable, reporter: Reporter, connections: ConnectionPool, region: str) -> None:
        self._agents = agents
        self._reporter = reporter
        self._region = region
        self.tracing = tracing.of_process()
        self.rate_limits = RateLimits(agents)
        self._forwarder = Forwarder(agents, connections)
        self._websockets = WebSocketForwarder(connections, self._forwarder)
        self._cors_settings: CorsSettings | None = None  # those in force
        self._cors_policy: CorsPolicy | None = None

    def share_homes(self, sharing: HomeSharing) -> None:
        """There are other gateways, which must agree on where sessions live."""
        self._forwarder.sharing = sharing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        snapshot = self._agents.snapshot
        cors = self._cors(snapshot.http.cors if snapshot else None)
        if cors is not None and scope["type"] == "http":
            send = cors.adding_headers(scope, send)
        exchange = Exchange(scope, receive, send, snapshot.http.max_body_bytes if snapshot else READ_AHEAD)
        if self.tracing is not None and not exchange.path.startswith(b"/-/"):
            self.tracing.observe(exchange)
        try:
            if sum(len(name) + len(value) for name, value in exchange.headers) > HEADER_LIMIT:
                raise HeadersTooLarge(f"the request headers exceed {HEADER_LIMIT} bytes")
            if scope["type"] == "websocket":
                await self._websocket(exchange)
            elif cors is not None and cors.is_preflight(scope):
                await cors.answer_preflight(exchange)
            else:
                await self._http(exchange)
        except (ClientDisconnected, UvicornClientDisconnected):
            exchange.failure = CLIENT_DISCONNECTED
        except SwiftClawError as error:
            await self._refuse(exchange, error)
        except asyncio.CancelledError:
            why = exchange.interruption()
            if why is None:
                raise
            if isinstance(why, ClientDisconnected):
                exchange.failure = CLIENT_DISCONNECTED
            else:
                await self._refuse(exchange, RequestTimeout("the request body did not arrive in time"))
        except Exception:
            log.exception("request %s failed in the gateway", exchange.request_id)
            await self._refuse(
                exchange, SwiftClawError("internal error; the gateway's log has the details under this request id")
            )
        finally:
            for observer in exchange.observers:
                observer.ended(exchange)

    def _cors(self, settings: CorsSettings | None) -> CorsPolicy | None:
        if settings is not self._cors_settings:
            self._cors_settings = settings
            self._cors_policy = None if settings is None else CorsPolicy(settings)
        return self._cors_policy

    async def _http(self, exchange: Exchange) -> None:
        path = exchange.path
        if path.startswith(b"/agents/"):
            await self._agent(exchange)
        elif path == b"/v1/chat/completions":
            await self._chat(exchange)
        elif path == b"/v1/models" or path.startswith(b"/v1/models/"):
            await self._models(exchange)
        elif path == b"/-/healthz":
            _only(exchange, "GET", "HEAD")
            ready = self._agents.snapshot is not None and all(p.ready or p.at_zero for p in self._agents.pools.values())
            await exchange.answer(200 if ready else 503, "success" if ready else "at least one agent has no healthy instance")
        elif path == b"/-/routes":
            _only(exchange, "GET", "HEAD")
            await exchange.answer(200, {f"/agents/{name}": name for name in self._agents.pools})
        elif path == b"*":  # OPTIONS for the gateway as a whole
            await exchange.answer(200, "")
        else:
            raise NotFound(f"no route matches {path.decode('latin-1')}")

    async def _agent(self, exchange: Exchange) -> None:
        pool, rest = self._addressed(exchange)
        if rest == b"/messages":
            _only(exchange, "POST")
            exchange.guard(pool.settings.request_timeout_s)
            body = await exchange.body(ahead=True)
            self.rate_limits.admit(exchange, pool.name, partial(in_message, exchange.prefix))
            json_body.check_depth(exchange.prefix)
            session = sessions.in_message(exchange.prefix) if pool.affinity else None
            await self._forwarder.http(self._call(exchange, pool, MESSAGES_PATH, body, session))
        else:
            self.rate_limits.admit(exchange, pool.name)
            exchange.guard(pool.settings.request_timeout_s)
            body = await exchange.body()
            if exchange.method == "OPTIONS" and _is_last_hop(exchange):
                await exchange.answer(200, "")
                return
            await self._forwarder.http(self._call(exchange, pool, _app_path(exchange, rest), body))

    async def _chat(self, exchange: Exchange) -> None:
        """The model names the agent, so the whole body is read: clients may put `model` behind long messages."""
        _only(exchange, "POST")
        exchange.check_length()
        exchange.guard(CHAT_BODY_S)
        body = await exchange.whole_body()
        chat = json_body.parse(body)
        if not isinstance(chat.get("model"), str):
            raise openai.BadField("model", "must be the name of an agent")
        pool = self._agents.pool(chat["model"])
        self._assign(exchange, pool)
        self.rate_limits.admit(exchange, pool.name, partial(in_chat, chat))
        await self._forwarder.http(self._call(exchange, pool, CHAT_PATH, body, sessions.in_chat(chat)))

    async def _models(self, exchange: Exchange) -> None:
        _only(exchange, "GET", "HEAD")
        name = exchange.path[len(b"/v1/models/") :].decode("latin-1")
        if not name:
            await exchange.answer(200, openai.model_list(list(self._agents.pools)))
            return
        self._agents.pool(name)
        await exchange.answer(200, openai.model(name))

    async def _websocket(self, exchange: Exchange) -> None:
        if not exchange.path.startswith(b"/agents/"):
            raise NotFound(f"no WebSocket route matches {exchange.path.decode('latin-1')}")
        pool, rest = self._addressed(exchange)
        self.rate_limits.admit(exchange, pool.name)
        await self._websockets.serve(self._call(exchange, pool, _app_path(exchange, rest)))

    def _addressed(self, exchange: Exchange) -> tuple[Pool, bytes]:
        """`/agents/NAME/rest` -> the agent's pool and `/rest`."""
        name, slash, rest = exchange.path[len(b"/agents/") :].partition(b"/")
        pool = self._agents.pool(name.decode("latin-1"))
        self._assign(exchange, pool)
        return pool, slash + rest

    @staticmethod
    def _assign(exchange: Exchange, pool: Pool) -> None:
        """The request is for this agent."""
        exchange.agent = pool.name
        if pool.settings.access_log.enabled:
            line = AccessLine(pool.name, pool.settings.access_log, pool.settings.load_balancing.strategy, pool.rng)
            exchange.observers = (*exchange.observers, line)

    def _call(self, exchange: Exchange, pool: Pool, path: str, body: Body = None, in_body: str | None = None) -> Call:
        """The admitted request, with everything that the choice of an instance may depend on."""
        clients, client = self._agents.clients, exchange.scope.get("client")
        peer = client[0] if client else None
        address = clients.address(peer, exchange.headers)
        session = sessions.resolve(exchange, pool, in_body, address)
        region = clients.region(peer, exchange.headers) if pool.by_client else None
        request = Request(
            agent=pool.name,
            session=session.name,
            region=region or self._region,
            now=exchange.started_at,
            pin=session.token.instance if session.token else None,
            fresh=session.fresh,
            version=pool.version_for(session.name, session.token, fresh=session.fresh),
        )
        return Call(exchange, pool, request, path, body, session)

    async def _refuse(self, exchange: Exchange, error: SwiftClawError) -> None:
        exchange.failure = error.type
        if not exchange.counted:
            self._reporter.refused(error)
        self.rate_limits.add_headers(exchange)
        exchange.done()
        if exchange.scope["type"] == "websocket":
            await _refuse_websocket(exchange, error)
            return
        if exchange.started:
            await exchange.end_broken(error)
            return
        headers = retry_after(error)
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode()))
        elif isinstance(error, HeadersTooLarge):
            headers.append((b"connection", b"close"))
        await exchange.answer(error.status, exchange.error(error), headers)


def _only(exchange: Exchange, *methods: str) -> None:
    if exchange.method not in methods:
        raise MethodNotAllowed(
            f"method {exchange.method} is not allowed here; use {' or '.join(methods)}", allowed=", ".join(methods)
        )


def _is_last_hop(exchange: Exchange) -> bool:
    """Whether `Max-Forwards` ends the request here (RFC 9110, section 7.6.2); else it is one less for the next hop."""
    left = exchange.header(b"max-forwards")
    if left is None or not left.isdigit():
        return False
    hops = min(int(left[:9]), _MOST_HOPS) if len(left) < 10 else _MOST_HOPS
    fewer = str(hops - 1).encode()
    exchange.headers = [(name, fewer if name == b"max-forwards" else value) for name, value in exchange.headers]
    return hops == 0


def _app_path(exchange: Exchange, rest: bytes) -> str:
    query = exchange.scope["query_string"]
    path = APP_PREFIX + (rest or b"/").decode("latin-1")
    return f"{path}?{query.decode('latin-1')}" if query else path


async def _refuse_websocket(exchange: Exchange, error: SwiftClawError) -> None:
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
