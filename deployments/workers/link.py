"""The socket between a gateway and one of its workers: what each tells the other. It ends with either of the two.

Messages are pickled, each after its length in 4 bytes: both ends are processes of one user, and one has started the other.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from typing import NamedTuple

from cluster.messages import Observation
from cluster.transport.rpc import RpcAddress
from deployments.gateway.place import GatewayPlace

LENGTH = 4  # bytes, before each message


class Begin(NamedTuple):
    """To the worker, first of all: what it is, and the descriptor of its socket, which it has inherited with the others'."""

    place: GatewayPlace
    listening: int


class Find(NamedTuple):
    """To the gateway: where does the Controller listen? The reply is a Found."""


class Found(NamedTuple):
    """To the worker. None: the Controller is away."""

    address: RpcAddress | None


class Ready(NamedTuple):
    """To the gateway: the worker accepts connections."""


class Alive(NamedTuple):
    """To the gateway, once a second: the worker's event loop runs."""


class Counted(NamedTuple):
    """To the gateway, for Ray's metrics: what the worker reports to the Controller."""

    observation: Observation


class Leaving(NamedTuple):
    """To the gateway: the worker was terminated. It accepts no more, and finishes what it has."""


class Stop(NamedTuple):
    """To the worker: accept no new connections, finish the requests in flight, end."""


Message = Begin | Find | Found | Ready | Alive | Counted | Leaving | Stop


class Link:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, connected: socket.socket) -> Link:
        return cls(*await asyncio.open_unix_connection(sock=connected))

    def send(self, message: Message) -> None:
        """A message to an end that is gone is lost: the link's reader learns of that."""
        if self._writer.is_closing():
            return
        content = pickle.dumps(message)
        self._writer.write(len(content).to_bytes(LENGTH, "big") + content)

    async def receive(self) -> Message | None:
        """The next message; None: the other process has ended, or closed the link."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH), "big")
            message: Message = pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    def close(self) -> None:
        self._writer.close()
