"""What a request that is forwarded needs of its client, and its client of it: two interfaces, all sync.

`ClientConnection` is a client over HTTP, `InProcessClient` one by Serve handle.
"""

from __future__ import annotations

from typing import Any, Protocol

from deployments.types import Headers, SentHeaders


class Arrived:
    """A request whose head is complete, as the connection hands it over."""

    __slots__ = ("client", "headers", "http_version", "method", "path", "query", "scheme", "server")

    def __init__(self, method: str, path: bytes, query: bytes, headers: SentHeaders, http_version: str,
                 scheme: str, client: Any, server: Any) -> None:  # fmt: skip
        self.method, self.path, self.query, self.headers, self.http_version = method, path, query, headers, http_version
        self.scheme, self.client, self.server = scheme, client, server


class ClientSide(Protocol):
    """The client, as the request sees it. What is written is sent with the next `flush`; `finish` flushes."""

    def respond(self, status: int, headers: Headers) -> None:
        """The response's head. Without `content-length` in it, the length of the body is not known."""

    def write(self, piece: bytes) -> None: ...
    def flush(self) -> None: ...
    def finish(self) -> None:
        """The response is complete."""

    def break_off(self) -> None:
        """The response ends here, incomplete, as the client will notice."""

    def done(self) -> None:
        """The request has ended: the next one may begin."""

    def want_body(self) -> None:
        """The request's body will be read: the client may send it now."""

    def pause_body(self) -> None:
        """What was read of the request's body is not needed yet."""

    def resume_body(self) -> None: ...


class RequestSide(Protocol):
    """The request, as its client's connection sees it. Nothing is called after `client_left`."""

    def begin(self) -> None:
        """Called first, once the requests before it on the connection have been answered."""

    def body_piece(self, piece: bytes) -> None: ...
    def body_end(self) -> None: ...
    def client_left(self) -> None: ...
    def client_paused(self) -> None:
        """The client does not read what was written."""

    def client_resumed(self) -> None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def idle_s(self) -> float | None:
        """How long the connection may be idle after it; None: the server's own limit."""
