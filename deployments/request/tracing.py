"""The trace that a request belongs to: continued here where the process has an OpenTelemetry tracer provider.

A server span per request, below it a client span for each instance that is asked, whose context goes there in the request's
headers. Without the OpenTelemetry API, or with it and no provider, nothing is made, and what the client sent
(`traceparent`, `tracestate`) goes through as it is. Source: W3C Trace Context; OpenTelemetry's conventions for HTTP spans.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

try:
    from opentelemetry import propagate, trace
except ImportError:  # it comes with Ray, which might do without it one day
    trace = None  # type: ignore[assignment]

from deployments.request.exchange import CLIENT_DISCONNECTED, Exchange
from deployments.types import SentHeaders

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from deployments.balancing.backend import Lease

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))


def of_process() -> Tracing | None:
    """None: nobody has set a tracer provider in this process, so there is nothing to do."""
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Tracing(provider)


def trace_id_of(exchange: Exchange) -> str | None:
    """The trace that the client says its request belongs to."""
    match = _TRACEPARENT.fullmatch(exchange.header(b"traceparent") or b"")
    return match[1].decode() if match and match[1].strip(b"0") else None


class Tracing:
    """Makes the spans of one gateway."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("swiftclaw")

    def begin(self, exchange: Exchange) -> RequestSpan:
        return RequestSpan(self._tracer, exchange)


class RequestSpan:
    """A request from its arrival to its end."""

    def __init__(self, tracer: trace.Tracer, exchange: Exchange) -> None:
        self._tracer = tracer
        self._method = exchange.method if exchange.method in _METHODS else "HTTP"
        route = _route(exchange.path)
        self._name = f"{self._method} {route}" if route else self._method
        carrier: dict[str, list[str]] = {}
        for name, value in exchange.headers:
            carrier.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        came_with = propagate.extract(carrier)
        since_s = time.monotonic() - exchange.started_at
        self._span = tracer.start_span(
            self._name,
            came_with,
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": self._method,
                "http.route": route,
                "url.path": exchange.path.decode("latin-1"),
                "url.scheme": exchange.scope.get("scheme", "http"),
                "swiftclaw.request_id": exchange.request_id,
            },
            start_time=time.time_ns() - int(since_s * 1e9),
        )
        self._context = trace.set_span_in_context(self._span, came_with)
        self._asked = 0

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def ask(self, agent: str, lease: Lease) -> AttemptSpan:
        """One instance is asked."""
        member = lease.backend.member
        span = self._tracer.start_span(
            self._name,
            self._context,
            kind=trace.SpanKind.CLIENT,
            attributes={
                "http.request.method": self._method,
                "http.request.resend_count": self._asked,
                "server.address": member.host,
                "server.port": member.port,
                "swiftclaw.agent": agent,
                "swiftclaw.instance": member.id,
                "swiftclaw.version": member.version,
                "swiftclaw.region": member.region,
            },
        )
        self._asked += 1
        return AttemptSpan(span, trace.set_span_in_context(span, self._context))

    def end(self, exchange: Exchange) -> None:
        if exchange.agent is not None:
            self._span.set_attribute("swiftclaw.agent", exchange.agent)
        status, failure = exchange.status, exchange.failure
        broke_off = status < 400 and failure not in (None, CLIENT_DISCONNECTED)
        _end(self._span, status or None, failure, failed=status >= 500 or broke_off)


class AttemptSpan:
    """One instance being asked, until its answer's last byte."""

    def __init__(self, span: trace.Span, context: Context) -> None:
        self._span, self._context = span, context

    def headers(self, sent: SentHeaders) -> SentHeaders:
        """`sent` with this span as the one that the instance's work is part of."""
        told: dict[str, str] = {}
        propagator = propagate.get_global_textmap()
        propagator.inject(told, self._context)
        fields = {field.encode() for field in propagator.fields}
        ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        return [*(header for header in sent if header[0] not in fields), *ours]

    def end(self, status: int | None, ok: bool | None) -> None:
        """`status` None: it gave no answer. `ok` False: that is a failure of the instance."""
        broke_off = ok is False and status is not None and status < 500
        _end(self._span, status, "no_answer" if status is None else "broke_off" if broke_off else None, failed=ok is False)


def _end(span: trace.Span, status: int | None, error: str | None, *, failed: bool) -> None:
    if status is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            error = error or str(status)
    if error is not None:
        span.set_attribute("error.type", error)
    if failed:
        span.set_status(trace.StatusCode.ERROR)
    span.end()


def _route(path: bytes) -> str:
    """The path with what varies left out; "": of nothing that is served."""
    if path.startswith(b"/agents/"):
        rest = path[len(b"/agents/") :].partition(b"/")[2]
        return "/agents/{agent}/messages" if rest == b"messages" else "/agents/{agent}/{path}"
    if path.startswith(b"/v1/models"):
        return "/v1/models"
    return path.decode() if path == b"/v1/chat/completions" else ""
