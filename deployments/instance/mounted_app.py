"""The mounted app's view of a request: as under uvicorn with `--root-path /agents/NAME`, listening at the gateway.

`path` includes `root_path` (ASGI 3), so that redirects, `url_for`, OpenAPI pages and sub-apps lead back through the gateway.
`client`, `scheme` and `server` are those of the request as its client sent it: the gateway states them in ORIGIN_HEADER.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from cluster.messages import APP_PREFIX, ORIGIN_HEADER, SESSION_HEADER
from deployments.instance.hosted_agent import AsgiApp
from deployments.instance.named_errors import only_disconnects
from deployments.request.client_address import HOST_HEADER, PREFIX_HEADER
from deployments.request.exchange import ClientDisconnected, Exchange
from deployments.types import Message, Scope

_STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
_ENDS = frozenset(("http.disconnect", "websocket.disconnect"))


class MountedApp:
    """The app that the agent mounts. `state`: of its lifespan; each request gets a copy."""

    def __init__(self, app: AsgiApp, agent: str, state: dict[str, Any]) -> None:
        self._app, self._state = app, state
        self._root = f"/agents/{agent}"

    async def answer(self, exchange: Exchange) -> None:
        """Raises what the app raises, but ClientDisconnected for what only says that its client has left."""

        async def receive() -> Message:
            message = await exchange.receive()
            exchange.client_left = exchange.client_left or message["type"] in _ENDS
            return message

        async def send(message: Message) -> None:
            if message["type"] in _STARTS:
                exchange.started = True
            try:
                await exchange.send(message)
            except OSError:  # as ASGI has it: the client has disconnected
                exchange.client_left = True
                raise

        try:
            await self._app(self._scope(exchange.scope), receive, send)
        except Exception as error:
            if exchange.client_left and only_disconnects(error):
                raise ClientDisconnected from error
            raise

    def _scope(self, scope: Scope) -> Scope:
        stated = host = b""
        shown = []
        for header in scope["headers"]:
            name = header[0]
            if name == ORIGIN_HEADER:
                stated = stated or header[1]
            elif name == HOST_HEADER:
                host = host or header[1]
                shown.append(header)
            elif name != SESSION_HEADER:
                shown.append(header)
        if host:
            shown = [(name, host if name == b"host" else value) for name, value in shown]
        scheme, client, server, prefix = _origin(stated) if stated else ("http", scope.get("client"), scope.get("server"), "")
        root, raw_root = _roots(prefix + self._root)
        shown.append((PREFIX_HEADER, raw_root))
        length = len(APP_PREFIX)
        return {
            **scope,
            "root_path": root,
            "path": root + scope["path"][length:],
            "raw_path": raw_root + scope["raw_path"][length:],
            "scheme": scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme,
            "client": client,
            "server": server,
            "headers": shown,
            "state": self._state.copy(),
        }


@lru_cache(1024)  # the requests of one connection state the same
def _origin(stated: bytes) -> tuple[str, tuple[str, int] | None, tuple[str, int | None] | None, str]:
    """Scheme, client, server and path prefix, as the client sent its request."""
    scheme, client, server, prefix = json.loads(stated)
    return scheme, tuple(client) if client else None, tuple(server) if server else None, prefix


@lru_cache(1024)
def _roots(raw: str) -> tuple[str, bytes]:
    return unquote(raw), raw.encode()
