"""A uvicorn server on a socket that is bound first, so that a port in use is found before anything else starts.

Used by the gateways (public port, shared between the replicas of a node, perhaps with TLS), the instances (ephemeral port)
and the Controller (admin port). Runs on the event loop of its caller and leaves signals alone: the process belongs to Ray.
Connections are `LimitedHttpProtocol`s (http_protocol.py), with limits that uvicorn does not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from cluster.transport.http_protocol import ConnectionLimits, DeadlineSweeper, LimitedHttpProtocol
from cluster.transport.running_clock import running_clock
from cluster.transport.shared_port import LEAVE_S, drop_handshakes
from cluster.transport.websocket_protocol import NotingWebSocketProtocol


class _NothingCancelled(logging.Filter):
    """Without a time for requests in flight, uvicorn reports at each stop as an error that it has cancelled none."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.args == (0,) and str(record.msg).startswith("Cancel %s running task(s)"))


logging.getLogger("uvicorn.error").addFilter(_NothingCancelled())


class PortInUse(Exception):
    """Another program listens on that address."""


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; `shared`: several processes of this machine may listen on it (SO_REUSEPORT)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only when the protocol is given; without it, a response of two writes takes 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        if not shared:  # a shared one would receive connections before its server accepts them
            listening.listen(2048)
    except OSError as error:
        listening.close()
        raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    listening.setblocking(False)
    return listening


def in_url(host: str) -> str:
    """The address for a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


async def bind_in_time(host: str, port: int, within_s: float = 5.0) -> socket.socket:
    """Retry for a while: the port of a process that was just killed is freed late. Raises PortInUse."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return bind(host, port)
        except PortInUse:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(0.25)


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        limits: ConnectionLimits,
        context: ssl.SSLContext | None,
        on_rejected: Callable[[int], None],
        protocol: Callable[..., Any],
    ) -> None:
        super().__init__(config)
        self._limits, self._context, self._on_rejected, self._protocol = limits, context, on_rejected, protocol
        self._exit_requested = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with our protocol and a time-out for the TLS handshake."""
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._connection,
                sock=listening,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.head_s if self._context else None,
                backlog=self.config.backlog,
            )
            for listening in sockets or ()
        ]
        self.started = True

    async def main_loop(self) -> None:
        """As uvicorn's, but it ends as soon as `exit` is called, not up to a tenth of a second later."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks = (ticks + 1) % 864_000
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._exit_requested.wait(), 0.1)

    def exit(self) -> None:
        self.should_exit = True
        self._exit_requested.set()

    def _connection(self) -> Any:
        return self._protocol(self._limits, self._on_rejected, config=self.config, server_state=self.server_state, app_state={})

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Listener:
    """One running server. `close()` lets requests in flight finish, for at most `grace_s` seconds."""

    def __init__(
        self,
        app: Any,
        listening: socket.socket,
        *,
        limits: ConnectionLimits | None = None,
        tls: ssl.SSLContext | None = None,
        grace_s: float = 5,
        date: bool = False,
        ws_ping_timeout_s: float | None = 20,
        on_rejected: Callable[[int], None] = lambda status: None,
        protocol: Callable[..., Any] = LimitedHttpProtocol,
    ) -> None:
        """`app`: an ASGI application; of WebSockets alone if `protocol`, the class of one connection, serves HTTP itself.
        `ws_ping_timeout_s`: a WebSocket's other side must answer a ping within this time; None: TCP finds a dead one.

        `on_rejected` is called with the status of each request that is answered without the app."""
        self.socket = listening
        self._limits = limits or ConnectionLimits()
        self._server = _Server(
            uvicorn.Config(
                app,
                interface="asgi3",  # otherwise a bound method is taken for an ASGI 2 app
                loop="none",
                http="httptools",
                ws=NotingWebSocketProtocol,
                ws_ping_timeout=ws_ping_timeout_s,
                ws_max_size=2**63 - 1,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=date,
                proxy_headers=False,
                timeout_graceful_shutdown=int(grace_s),
                backlog=2048,
            ),
            self._limits,
            tls,
            on_rejected,
            protocol,
        )
        self._sweeping: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    async def start(self) -> None:
        """Start serving; returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self.socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the server stopped while starting")
            await asyncio.sleep(0.005)
        self._sweeping = asyncio.create_task(self._sweep())

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    async def _sweep(self) -> None:
        sweeper, clock = DeadlineSweeper(self._server.server_state.connections, self._limits), running_clock()
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            sweeper.sweep(clock.now())

    async def close(self, *, others_stay: bool = False) -> None:
        """`others_stay`: other processes may share the port; they get the connections that arrive from now on."""
        if others_stay and drop_handshakes(self.socket):
            await asyncio.sleep(LEAVE_S)  # what has arrived is accepted and served
        self._server.exit()
        if self._task is not None:
            await self._task
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._server.server_state.connections):  # already closed, except for unread responses
            connection.transport.abort()
