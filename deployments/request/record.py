"""One request and what becomes of it, as every part of the process that handles it sees it: data only.

The client's side fills in what was asked, the edge whom it is for, the forwarder how it went; headers, sessions, rate limits,
access log and traces read it. `Exchange` (an ASGI request) and `ProxiedRequest` (one that a gateway forwards) are records that
can also act.
"""

from __future__ import annotations

import re
import time
from random import getrandbits
from typing import Any, Protocol

from cluster.messages import Member
from deployments.request import openai
from deployments.types import SentHeaders
from policies.errors import BadRequest, PayloadTooLarge, SwiftClawError

CLIENT_DISCONNECTED = "client_gone"  # in place of a named error
READ_AHEAD = 64 * 1024  # bodies up to this size are read before an instance is chosen
_GOOD_ID = re.compile(rb"[!-~]{1,128}")
Address = tuple[str, int]


class RequestObserver(Protocol):
    """Follows one request through the gateway, for its access log line or its trace; the edge attaches it.

    Per attempt: `queued` if the request had to wait, `attempt_started`, `attempt_ended`. Then `ended`, once.
    """

    def queued(self, now: float) -> None:
        """The request entered the wait queue."""

    def attempt_started(self, record: RequestRecord, instance: Member, now: float, headers: SentHeaders) -> SentHeaders:
        """The request is about to be sent to `instance`. Returns the headers to send, which may be `headers` themselves."""
        ...

    def attempt_ended(self, status: int | None, ok: bool | None, first_byte_at: float | None) -> None:
        """`status` None: no response arrived. `ok` False: the instance failed; None: the attempt proves nothing."""

    def ended(self, record: RequestRecord) -> None:
        """The response is complete, or the client has disconnected."""


class RequestRecord:
    """`headers` are the client's, names in lower case; `path` is as it was sent, without the query."""

    __slots__ = (
        "agent", "client", "counted", "event_stream", "failure", "headers", "http_version", "is_openai", "max_body", "method",
        "observers", "path", "query", "request_id", "response_headers", "scheme", "server", "started", "started_at",
        "status", "trace_id",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: SentHeaders,
        scheme: str = "http",
        client: Address | None = None,
        server: tuple[str, int | None] | None = None,
        http_version: str = "1.1",
        max_body: int = READ_AHEAD,
    ) -> None:
        """`scheme`: http or https, also of a WebSocket. `client`, `server`: the two ends of the connection."""
        self.method, self.path, self.query, self.headers = method, path, query, headers
        self.scheme, self.client, self.server, self.http_version = scheme, client, server, http_version
        self.max_body = max_body
        self.started_at = time.monotonic()
        self.started = False  # the response head was sent
        self.status = 0
        self.event_stream = False
        self.is_openai = path.startswith(b"/v1/") or path == b"/v1"  # errors have OpenAI's shape
        self.response_headers: SentHeaders = []  # added to the response, whichever it will be
        self.agent: str | None = None  # the agent that it addresses, once known
        self.counted = False  # in the tally of an instance
        self.failure: str | None = None  # type of the error it ended with, or CLIENT_DISCONNECTED
        self.observers: tuple[RequestObserver, ...] = ()
        self.trace_id: str | None = None  # of the gateway's own span; None: this process makes none
        client_id = self.header(b"x-request-id")
        self.request_id = client_id.decode() if client_id and _GOOD_ID.fullmatch(client_id) else f"{getrandbits(128):032x}"

    def header(self, name: bytes) -> bytes | None:
        """The first of that name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def check_length(self) -> int | None:
        """Content-Length; 0 without a body, None when it is chunked. Raises BadRequest, PayloadTooLarge."""
        if self.header(b"transfer-encoding") is not None:
            return None
        text = self.header(b"content-length")
        if text is None:
            return 0
        if not text.isdigit():
            raise BadRequest("content-length: must be a number")
        length = int(text)
        if length > self.max_body:
            raise PayloadTooLarge(f"the request body has {length} bytes; at most {self.max_body} are allowed")
        return length

    def error(self, error: SwiftClawError) -> dict[str, Any]:
        """The response body that names an error."""
        if self.is_openai:
            return openai.error_body(error, self.request_id)
        body: dict[str, Any] = {
            "type": error.type,
            "message": error.message,
            "agent": error.agent,
            "request_id": self.request_id,
        }
        return {"error": body if error.detail is None else {**body, "detail": error.detail}}
