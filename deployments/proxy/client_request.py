"""A request whose client this process answers itself: the response as a whole, or as the relayed head of another's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable

from cluster.transport import sse
from deployments.proxy.client import Arrived, ClientSide
from deployments.request.record import RequestRecord
from deployments.types import Headers, SentHeaders
from policies.errors import SwiftClawError


class ClientRequest(RequestRecord, ABC):
    """`with_headers`: changes the headers of every response to this client; None: nothing does."""

    __slots__ = ("client_side", "with_headers")

    def __init__(self, client_side: ClientSide, arrived: Arrived, max_body: int) -> None:
        RequestRecord.__init__(
            self, arrived.method, arrived.path, arrived.query, arrived.headers,
            arrived.scheme, arrived.client, arrived.server, arrived.http_version, max_body,
        )  # fmt: skip
        self.client_side = client_side
        self.with_headers: Callable[[Headers], SentHeaders] | None = None

    @abstractmethod
    def end(self) -> None:
        """The response is complete, or broken off: release what the request holds."""

    def start(self, status: int, headers: Headers) -> None:
        """The response's head."""
        if self.with_headers is not None:
            headers = self.with_headers(headers)
        self.started = True
        self.status = status
        self.client_side.respond(status, headers)

    def answer(self, status: int, body: object, more: Headers = ()) -> None:
        """Send a complete response: JSON, which may be encoded already, or text for a str. `more`: headers."""
        text = isinstance(body, str)
        content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8" if text else b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"x-request-id", self.request_id.encode()),
            *self.response_headers,
            *more,
        ]
        self.start(status, headers)
        self.client_side.write(content)
        self.client_side.finish()
        self.end()

    def break_off(self, error: SwiftClawError) -> None:
        """After the head was sent: an event stream ends with the error; any other response ends short, as clients notice."""
        if self.event_stream:
            self.client_side.write(sse.encode(json.dumps(self.error(error)), name="error"))
            self.client_side.finish()
        else:
            self.client_side.break_off()
        self.end()
