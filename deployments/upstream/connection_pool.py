"""Connections to instances: those that are kept between requests, by address, and WebSockets.

The narrow seam of the data plane: everything above it speaks of `InstanceResponse`, `NotConnected` and `ConnectionBroken`
only, so that the HTTP client can be exchanged. Requests go over `deployments.connection`, because a general client's time per
request was the largest part of a gateway's; WebSockets by aiohttp, where a handshake per conversation does not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from cluster.transport.listener import in_url
from deployments.types import Body, Headers
from deployments.upstream.connection import Connection, ConnectionBroken, InstanceRequest, InstanceResponse, NotConnected

_IDLE_CONNECTION_S = 30.0  # below the instances' own keep-alive time, or a request may meet a connection being closed

Address = tuple[str, int]


class ConnectionPool:
    """The pool. Made inside a running event loop."""

    def __init__(self, idle_s: float = _IDLE_CONNECTION_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._idle: dict[Address, list[tuple[Connection, float]]] = {}  # with the time since when; the newest last
        self._open: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._websockets = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def request(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        headers: Headers,
        body: Body,
        connect_s: float = 10.0,
    ) -> InstanceResponse:
        """The answer's head. `path` is sent as it is, query included. Raises NotConnected or ConnectionBroken."""
        request = InstanceRequest(method, path, headers, body, f"{in_url(host)}:{port}")
        connection = self._kept((host, port)) or await self._connect((host, port), connect_s)
        return await connection.ask(request)

    async def websocket(
        self, host: str, port: int, path: str, headers: Headers, protocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[Any]:
        """An open WebSocket. Raises NotConnected, ConnectionBroken, or aiohttp.WSServerHandshakeError when it was declined."""
        try:
            return await self._websockets.ws_connect(
                URL(f"http://{in_url(host)}:{port}{path}", encoded=True),
                headers=CIMultiDict((name.decode("latin-1"), _decoded(value)) for name, value in headers),
                protocols=protocols,
                autoping=True,
                max_msg_size=0,
                compress=0,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(str(error)) from error
        except aiohttp.WSServerHandshakeError:
            raise
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ConnectionBroken(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._open):
            connection.abort()
        await self._websockets.close()

    # --- the pool -------------------------------------------------------------------------------------------------

    def _kept(self, address: Address) -> Connection | None:
        """The one that was used last: the others may grow old."""
        idle = self._idle.get(address)
        while idle:
            connection, _ = idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, address: Address, connect_s: float) -> Connection:
        connection = Connection(lambda idle: self._keep(address, idle), self._open.discard)
        self._open.add(connection)
        try:
            await asyncio.wait_for(self._loop.create_connection(lambda: connection, *address), connect_s)
        except BaseException as error:
            connection.abort()
            self._open.discard(connection)
            if isinstance(error, OSError | asyncio.TimeoutError):
                raise NotConnected(str(error) or f"no connection within {connect_s:g} s") from error
            raise
        return connection

    def _keep(self, address: Address, connection: Connection) -> None:
        self._idle.setdefault(address, []).append((connection, self._loop.time()))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._idle_s / 2, self._sweep)

    def _sweep(self) -> None:
        """Close those that nobody has needed for long, and forget addresses where none is left."""
        self._sweeping = None
        until = self._loop.time() - self._idle_s
        for address, idle in list(self._idle.items()):
            for connection, since in idle:
                if since < until:
                    connection.close()
            idle[:] = [(connection, since) for connection, since in idle if connection.usable]
            if not idle:
                del self._idle[address]
        if self._idle:
            self._sweeping = self._loop.call_later(self._idle_s / 2, self._sweep)


def _decoded(value: bytes) -> str:
    """aiohttp writes UTF-8, so what is UTF-8 arrives as it was."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
