"""Distributed tracing, in processes that have an OpenTelemetry tracer provider.

One server span per request and, below it, one client span per attempt, whose context travels to the instance in the request's
headers. Without the OpenTelemetry API, or without a provider, no span is made and the client's `traceparent` and `tracestate`
are forwarded unchanged. Source: W3C Trace Context; OpenTelemetry's conventions for HTTP spans.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

try:
    from opentelemetry import propagate, trace
except ImportError:  # a dependency of Ray today, not of this project
    trace = None  # type: ignore[assignment]

from cluster.messages import Member
from deployments.request.record import CLIENT_DISCONNECTED, RequestRecord
from deployments.types import SentHeaders

if TYPE_CHECKING:
    from opentelemetry.context import Context

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))


def of_process() -> Tracing | None:
    """None when this process has no tracer provider."""
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Tracing(provider)


def trace_id_of(record: RequestRecord) -> str | None:
    """The trace id in the client's `traceparent` header."""
    match = _TRACEPARENT.fullmatch(record.header(b"traceparent") or b"")
    return match[1].decode() if match and match[1].strip(b"0") else None


class Tracing:
    """Makes the spans of one gateway."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("swiftclaw")

    def observe(self, record: RequestRecord) -> None:
        """Start the request's span, which follows it to its end."""
        span = RequestSpan(self._tracer, record)
        record.observers = (*record.observers, span)
        record.trace_id = span.trace_id


class RequestSpan:
    """The spans of one request: a `RequestObserver`."""

    def __init__(self, tracer: trace.Tracer, record: RequestRecord) -> None:
        self._tracer = tracer
        self._method = record.method if record.method in _METHODS else "HTTP"
        route = _route(record.path)
        self._name = f"{self._method} {route}" if route else self._method
        carrier: dict[str, list[str]] = {}
        for name, value in record.headers:
            carrier.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        parent = propagate.extract(carrier)
        since_s = time.monotonic() - record.started_at
        self._span = tracer.start_span(
            self._name,
            parent,
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": self._method,
                "http.route": route,
                "url.path": record.path.decode("latin-1"),
                "url.scheme": record.scheme,
                "swiftclaw.request_id": record.request_id,
            },
            start_time=time.time_ns() - int(since_s * 1e9),
        )
        self._context = trace.set_span_in_context(self._span, parent)
        self._attempts = 0
        self._attempt: trace.Span = trace.INVALID_SPAN  # the newest client span

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def queued(self, now: float) -> None:
        """Waiting is part of the server span."""

    def attempt_started(self, record: RequestRecord, instance: Member, now: float, headers: SentHeaders) -> SentHeaders:
        """Start a client span. Returns `headers` with it as the parent of the instance's own spans."""
        self._attempt = self._tracer.start_span(
            self._name,
            self._context,
            kind=trace.SpanKind.CLIENT,
            attributes={
                "http.request.method": self._method,
                "http.request.resend_count": self._attempts,
                "server.address": instance.host,
                "server.port": instance.port,
                "swiftclaw.agent": record.agent or "",
                "swiftclaw.instance": instance.id,
                "swiftclaw.version": instance.version,
                "swiftclaw.region": instance.region,
            },
        )
        self._attempts += 1
        return _propagated(headers, trace.set_span_in_context(self._attempt, self._context))

    def attempt_ended(self, status: int | None, ok: bool | None, first_byte_at: float | None) -> None:
        broke_off = ok is False and status is not None and status < 500
        error = "no_answer" if status is None else "broke_off" if broke_off else None
        _end(self._attempt, status, error, failed=ok is False)

    def ended(self, record: RequestRecord) -> None:
        if record.agent is not None:
            self._span.set_attribute("swiftclaw.agent", record.agent)
        status, failure = record.status, record.failure
        broke_off = status < 400 and failure not in (None, CLIENT_DISCONNECTED)
        _end(self._span, status or None, failure, failed=status >= 500 or broke_off)


def _propagated(headers: SentHeaders, context: Context) -> SentHeaders:
    """`headers` with the trace context of `context` in place of the client's."""
    injected: dict[str, str] = {}
    propagator = propagate.get_global_textmap()
    propagator.inject(injected, context)
    replaced = {field.encode() for field in propagator.fields}
    ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in injected.items()]
    return [*(header for header in headers if header[0] not in replaced), *ours]


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
    """The path with its variable parts as placeholders; empty for a path that is not served."""
    if path.startswith(b"/agents/"):
        rest = path[len(b"/agents/") :].partition(b"/")[2]
        return "/agents/{agent}/messages" if rest == b"messages" else "/agents/{agent}/{path}"
    if path.startswith(b"/v1/models"):
        return "/v1/models"
    return path.decode() if path == b"/v1/chat/completions" else ""
