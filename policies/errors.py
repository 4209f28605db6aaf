"""Every reason for which a request is refused or fails, named for what happened, and the one table of statuses.

Raised by policies and by the data plane; translated to HTTP in one place (deployments/gateway/edge.py), so that a client
reads the same words on every path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CLIENT_CLOSED_REQUEST = 499  # NGINX's code for a client that disconnected; in metrics and logs only, never sent


class SwiftClawError(Exception):
    """A request that cannot be answered. `type` is what clients read; `retry_after_s`: when to try again, if known."""

    type = "internal_error"
    detail: object = None  # what clients get besides the message, as JSON
    headers: Sequence[tuple[bytes, bytes]] = ()  # of the response

    def __init__(self, message: str, *, agent: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.agent = agent
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """From STATUS: that of its class, or of the nearest base class there."""
        return next(STATUS[kind] for kind in type(self).__mro__ if kind in STATUS)


class BadRequest(SwiftClawError):
    type = "bad_request"


class UnknownAgent(SwiftClawError):
    type = "unknown_agent"


class NotFound(SwiftClawError):
    type = "not_found"


class MethodNotAllowed(SwiftClawError):
    """`allowed` is the value of the Allow header."""

    type = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class PayloadTooLarge(SwiftClawError):
    type = "payload_too_large"


class HeadersTooLarge(BadRequest):
    """A bad request with a status of its own."""


class AgentFailed(SwiftClawError):
    """The agent's code raised an exception."""

    type = "agent_error"


class ModelFailed(SwiftClawError):
    """The agent's model server failed: a 5xx, no connection, or a response that is not the chat API."""

    type = "model_error"


class ModelTimeout(SwiftClawError):
    """The agent's model server did not answer in time."""

    type = "model_timeout"


class ModelRefused(SwiftClawError):
    """The agent's model server refused the request: the status is the server's own 4xx, and no failure of the instance.

    `fields`: the server's own error object, whose `type`, `code` and `param` the clients of the chat API know.
    """

    type = "model_refused"

    def __init__(
        self,
        message: str,
        *,
        refused_with: int,
        fields: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.fields = fields
        self._status = refused_with

    @property
    def status(self) -> int:
        return self._status


class AgentRefused(SwiftClawError):
    """The agent's code refused the request by an HTTPException, which has the status, the message and headers.

    A status of 500 and more is an agent_error, and a failure of the instance.
    """

    type = "agent_refused"

    def __init__(
        self, message: str, *, refused_with: int, detail: object = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message)
        self.detail, self.headers = detail, headers
        self._status = refused_with
        if refused_with >= STATUS[AgentFailed]:
            self.type = AgentFailed.type

    @property
    def status(self) -> int:
        return self._status


class RateLimited(SwiftClawError):
    type = "rate_limited"


class InstanceFailed(SwiftClawError):
    """The instance died or broke the connection, and no retry was allowed or left."""

    type = "instance_failed"


class Overloaded(SwiftClawError):
    type = "overloaded"


class NoHealthyInstance(SwiftClawError):
    type = "no_healthy_instance"


class CircuitOpen(SwiftClawError):
    type = "circuit_open"


class RequestTimeout(SwiftClawError):
    type = "request_timeout"


STATUS: dict[type[SwiftClawError], int] = {
    BadRequest: 400,
    UnknownAgent: 404,
    NotFound: 404,
    MethodNotAllowed: 405,
    PayloadTooLarge: 413,
    RateLimited: 429,
    HeadersTooLarge: 431,
    AgentFailed: 500,
    SwiftClawError: 500,
    InstanceFailed: 502,
    ModelFailed: 502,
    Overloaded: 503,
    NoHealthyInstance: 503,
    CircuitOpen: 503,
    ModelTimeout: 504,
    RequestTimeout: 504,
}
