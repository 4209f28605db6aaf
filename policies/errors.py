"""Every way in which a request can be refused, named for what happened, and the one table of statuses.

Raised by decisions and by the data plane; translated to HTTP in one place (deployments/gateway/edge.py), so that a client sees
the same words from every path.
"""

from __future__ import annotations


class SwiftClawError(Exception):
    """A request that is not answered. `retry_after_s`: when asking again makes sense, if that is known."""

    type = "internal_error"

    def __init__(self, message: str, *, agent: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.agent = agent
        self.retry_after_s = retry_after_s


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


class AgentFailed(SwiftClawError):
    """The user's code raised."""

    type = "agent_error"


class RateLimited(SwiftClawError):
    type = "rate_limited"


class InstanceFailed(SwiftClawError):
    """The instance died or broke off, and no retry was allowed or left."""

    type = "instance_failed"


class Overloaded(SwiftClawError):
    type = "overloaded"


class NoHealthyInstance(SwiftClawError):
    type = "no_healthy_instance"


class CircuitOpen(SwiftClawError):
    type = "circuit_open"


class RequestTimeout(SwiftClawError):
    type = "request_timeout"


CLIENT_CLOSED_REQUEST = 499  # NGINX's code for a client that disconnected; recorded in metrics and logs, never sent

STATUS: dict[str, int] = {
    BadRequest.type: 400,
    UnknownAgent.type: 404,
    NotFound.type: 404,
    MethodNotAllowed.type: 405,
    PayloadTooLarge.type: 413,
    RateLimited.type: 429,
    AgentFailed.type: 500,
    SwiftClawError.type: 500,
    InstanceFailed.type: 502,
    Overloaded.type: 503,
    NoHealthyInstance.type: 503,
    CircuitOpen.type: 503,
    RequestTimeout.type: 504,
}
