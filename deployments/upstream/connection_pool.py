"""Connections to instances: kept HTTP connections by address, and WebSockets.

The only place that knows how instances are reached: callers see `InstanceResponse`, `InstanceWebSocket`, `NotConnected` and
`ConnectionBroken`. HTTP goes over upstream/connection.py, because a general client would take the largest part of a gateway's
time per request; WebSockets go over upstream/websocket_connection.py.
"""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from cluster.transport.listener import in_url
from cluster.transport.running_clock import running_clock
from deployments.types import Body, Headers
from deployments.upstream.connection import (
    Connection,
    ConnectionState,
    InstanceRequest,
    InstanceResponse,
    NotConnected,
)
from deployments.upstream.websocket_connection import InstanceWebSocket

_IDLE_CONNECTION_S = 30.0  # below the instances' keep-alive time, or a request may hit a connection that is being closed

Address = tuple[str, int]


class ConnectionPool:
    """Needs a running event loop."""

    def __init__(self, idle_s: float = _IDLE_CONNECTION_S) -> None:
        self._loop, self._clock = asyncio.get_running_loop(), running_clock()
        self._idle_s = idle_s
        self._idle: dict[Address, list[tuple[Connection, float]]] = {}  # with the time of their last use, newest last
        self._open: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._websockets: WeakSet[InstanceWebSocket] = WeakSet()

    def __repr__(self) -> str:
        idle = sum(connection.state is ConnectionState.IDLE for connection in self._open)
        active = sum(connection.state is ConnectionState.ACTIVE for connection in self._open)
        return f"<ConnectionPool: {active} active, {idle} idle, {len(self._open) - active - idle} connecting or closing>"

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
        """Send a request and wait for the response head. `path` includes the query. Raises NotConnected, ConnectionBroken."""
        request = InstanceRequest(method, path, headers, body, f"{in_url(host)}:{port}")
        connection = self.take_idle((host, port)) or await self.connect((host, port), connect_s)
        return await connection.ask(request)

    async def websocket(
        self, host: str, port: int, path: str, headers: Headers, protocols: list[str], connect_s: float = 10.0
    ) -> InstanceWebSocket:
        """Open a WebSocket. Raises NotConnected, ConnectionBroken, or HandshakeDeclined with the instance's response."""
        socket = InstanceWebSocket()
        self._websockets.add(socket)
        try:
            await self._clock.wait_for(self._loop.create_connection(lambda: socket, host, port), connect_s)
        except (OSError, asyncio.TimeoutError) as error:
            raise NotConnected(str(error) or f"no connection within {connect_s:g} s") from error
        try:
            await socket.open(path, headers, protocols)
        except BaseException:
            socket.abort()
            raise
        return socket

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._open):
            connection.abort()
        for socket in list(self._websockets):
            socket.abort()

    # --- the pool -------------------------------------------------------------------------------------------------

    def take_idle(self, address: Address) -> Connection | None:
        """The most recently used connection, so that surplus ones stay idle and expire.

        Not one that has been idle too long while this process was paused: the instance may have closed it.
        """
        idle = self._idle.get(address)
        oldest = self._loop.time() - self._idle_s
        while idle:
            connection, since = idle.pop()
            if connection.usable and since >= oldest:
                return connection
            connection.close()
        return None

    async def connect(self, address: Address, connect_s: float) -> Connection:
        """A new connection. Raises NotConnected."""
        connection = Connection(lambda idle: self._keep(address, idle), self._open.discard)
        self._open.add(connection)
        try:
            await self._clock.wait_for(self._loop.create_connection(lambda: connection, *address), connect_s)
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
        """Close connections that have been idle too long, and forget addresses without any."""
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
