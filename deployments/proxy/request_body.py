"""A request's body on its way from the client: gathered until an instance can be chosen, then passed on piece by piece."""

from __future__ import annotations

from collections.abc import Callable

from deployments.proxy.client import ClientSide
from deployments.request.record import READ_AHEAD
from deployments.upstream.connection import STREAMED, Connection, RequestBody, Streamed
from policies.errors import PayloadTooLarge

Then = Callable[[bytes], None]


class IncomingBody:
    """`value`: the body, once `then` was called: whole, None without one, or STREAMED. A whole one can be sent again."""

    __slots__ = ("_client", "_gathered", "_held", "_instance", "_most", "_received", "_then", "_until", "ended", "value")

    def __init__(self, client: ClientSide, most: int) -> None:
        """`most`: the limit in bytes."""
        self._client, self._most = client, most
        self.value: RequestBody = None
        self.ended = False  # all of it has arrived
        self._received = 0
        self._then: Then | None = None  # what follows once enough of it has been read
        self._until = 0  # bytes that are read before that
        self._gathered: list[bytes] = []
        self._held: list[bytes] = []  # pieces that no instance could take yet
        self._instance: Connection | None = None  # that the rest is sent to

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.value, Streamed)

    def read(self, length: int | None, then: Then, *, ahead: bool = False) -> None:
        """Read a small body whole; a large one, or one of unknown length (None), is streamed.

        `then` gets what was read. `ahead`: first read the beginning of a stream; if that is all of it, the body is whole.
        """
        if length is not None and length <= READ_AHEAD:
            self._gather(READ_AHEAD + 1, then)
        else:
            self._gather(READ_AHEAD if ahead else 0, then)

    def read_whole(self, then: Then) -> None:
        """Read the body into memory, up to the limit."""
        self._gather(self._most + 1, then)

    def _gather(self, until: int, then: Then) -> None:
        self._until, self._then = until, then
        self._client.want_body()
        if not until or self.ended:
            self._read_enough()

    def piece(self, piece: bytes) -> None:
        """Raises PayloadTooLarge, and what `then` raises."""
        self._received += len(piece)
        if self._received > self._most:
            raise PayloadTooLarge(f"the request body has more than the {self._most} bytes allowed")
        if self._then is not None:
            self._gathered.append(piece)
            if self._received >= self._until:
                self._read_enough()
        elif self._instance is not None:
            self._instance.send_piece(piece)
            if not self._instance.writable:
                self._client.pause_body()
        else:
            self._held.append(piece)
            self._client.pause_body()

    def end(self) -> None:
        """Raises what `then` raises."""
        self.ended = True
        if self._then is not None:
            self._read_enough()
        elif self._instance is not None:
            self._instance.end_body()

    def _read_enough(self) -> None:
        then, self._then = self._then, None
        gathered = self._gathered
        read = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        self._gathered = []
        if self.ended:
            self.value = read or None
        else:
            self.value = STREAMED
            if read:
                self._held.append(read)
                self._client.pause_body()
        if then is not None:
            then(read)

    # --- to the instance --------------------------------------------------------------------------------------------

    def send(self, instance: Connection) -> None:
        """The head of a request with a streamed body was sent: what was held follows, and what arrives from now on."""
        held, self._held = self._held, []
        for piece in held:
            instance.send_piece(piece)
        if self.ended:
            instance.end_body()
        else:
            self._instance = instance
            if instance.writable:
                self._client.resume_body()

    def stop(self) -> None:
        """Nothing more is sent, or read for anybody."""
        self._instance = self._then = None
        self._held, self._gathered = [], []
