"""Traces: the client's goes through untouched where nobody traces, and is continued where somebody does."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from deployments.request import tracing
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import ACCESS_LOG_ON, Lines, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc,other=1"}
ODD = {"traceparent": "from another age", "tracestate": "not, even = this"}


def telling() -> Agent:
    """It answers with the headers of the trace that it sees."""
    agent = Agent("a")

    @agent.on_message
    async def handle(message: str, request: Any) -> str:
        if message == "raise":
            raise ValueError("no")
        return f"{request.headers.get('traceparent')} {request.headers.get('tracestate')}"

    return agent


async def ask(plane: DataPlane, headers: dict[str, str], message: str = "hi") -> str:
    async with plane.client.post("/agents/a/messages", json={"message": message}, headers=headers) as response:
        body = await response.json()
        return str(body["reply"]) if response.status == 200 else str(response.status)


class Spans:
    """Those that have ended, by kind."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind]

    async def whole(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The server span, once it has ended, and the client spans."""
        await until(lambda: bool(self.of(SpanKind.SERVER)))
        (server,) = self.of(SpanKind.SERVER)
        return server, self.of(SpanKind.CLIENT)


@pytest.fixture
async def traced(plane: DataPlane) -> Spans:
    spans = Spans()
    plane.edge.tracing = tracing.Tracing(spans.provider)
    return spans


@pytest.mark.parametrize("sent", [SENT, ODD])
async def test_where_nobody_traces_the_clients_headers_go_through_as_they_are(plane: DataPlane, sent: dict[str, str]) -> None:
    assert plane.edge.tracing is None
    await plane.add(telling())
    assert await ask(plane, sent) == f"{sent['traceparent']} {sent['tracestate']}"
    assert await ask(plane, {}) == "None None"


async def test_a_request_is_a_server_span_of_the_clients_trace_with_the_attempt_below_it(
    plane: DataPlane, traced: Spans, lines: Lines
) -> None:
    plane.blocks["a"] = ACCESS_LOG_ON
    await plane.add(telling())
    seen = await ask(plane, SENT)
    server, (client,) = await traced.whole()
    assert server.context and client.context and server.parent and client.parent
    assert format_trace_id(server.context.trace_id) == format_trace_id(client.context.trace_id) == TRACE
    assert format_span_id(server.parent.span_id) == PARENT
    assert client.parent.span_id == server.context.span_id
    assert seen == f"00-{TRACE}-{format_span_id(client.context.span_id)}-01 {SENT['tracestate']}"
    assert server.name == client.name == "POST /agents/{agent}/messages"
    about = dict(server.attributes or {})
    assert (about["http.response.status_code"], about["swiftclaw.agent"], about["url.path"]) == (200, "a", "/agents/a/messages")
    assert dict(client.attributes or {})["swiftclaw.instance"] == "instance-1"
    assert server.status.status_code is client.status.status_code is StatusCode.UNSET
    assert server.start_time and client.start_time and server.start_time <= client.start_time
    assert (await lines.arrive(1))[0]["trace_id"] == TRACE


async def test_without_a_trace_of_the_clients_one_begins_here(plane: DataPlane, traced: Spans, lines: Lines) -> None:
    plane.blocks["a"] = ACCESS_LOG_ON
    await plane.add(telling())
    seen = await ask(plane, ODD)
    server, (client,) = await traced.whole()
    assert server.parent is None and server.context and client.context
    assert seen.startswith(f"00-{format_trace_id(server.context.trace_id)}-{format_span_id(client.context.span_id)}-")
    assert seen.endswith(" None") and client.context.trace_flags.sampled
    assert (await lines.arrive(1))[0]["trace_id"] == format_trace_id(server.context.trace_id)


async def test_a_client_that_is_not_sampled_stays_so_and_the_instance_hears_it(plane: DataPlane, traced: Spans) -> None:
    await plane.add(telling())
    seen = await ask(plane, {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert seen.startswith(f"00-{TRACE}-") and seen.endswith("-00 None")
    assert traced.of(SpanKind.SERVER) == traced.of(SpanKind.CLIENT) == []


async def test_each_instance_that_is_asked_is_a_span_of_its_own(plane: DataPlane, traced: Spans) -> None:
    await plane.add(telling(), 2)
    await plane.end("a-instance-1")
    for _ in range(4):
        await ask(plane, SENT)
        if any(dict(span.attributes or {}).get("error.type") == "no_answer" for span in traced.of(SpanKind.CLIENT)):
            break
    refused, answered = traced.of(SpanKind.CLIENT)[-2:]
    assert (refused.attributes or {})["swiftclaw.instance"] == "instance-1"
    assert (refused.status.status_code, answered.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert (answered.attributes or {})["http.request.resend_count"] == 1
    assert refused.parent and answered.parent and refused.parent.span_id == answered.parent.span_id


async def test_a_refusal_is_a_span_with_its_named_error(plane: DataPlane, traced: Spans) -> None:
    await plane.add(telling())
    plane.mark("a", "instance-1", "unhealthy")
    assert await ask(plane, SENT) == "503"
    server, attempts = await traced.whole()
    about = dict(server.attributes or {})
    assert (about["error.type"], about["http.response.status_code"], attempts) == ("no_healthy_instance", 503, [])
    assert server.status.status_code is StatusCode.ERROR


async def test_an_error_of_the_agent_marks_both_spans_and_one_of_the_client_neither(plane: DataPlane, traced: Spans) -> None:
    await plane.add(telling())
    assert await ask(plane, SENT, "raise") == "500"
    server, (client,) = await traced.whole()
    assert server.status.status_code is client.status.status_code is StatusCode.ERROR
    assert (await plane.client.get("/agents/nobody/messages")).status == 404
    await until(lambda: len(traced.of(SpanKind.SERVER)) == 2)
    assert traced.of(SpanKind.SERVER)[1].status.status_code is StatusCode.UNSET


async def test_health_checks_are_no_traces(plane: DataPlane, traced: Spans) -> None:
    await plane.add(telling())
    assert (await plane.client.get("/-/healthz")).status == 200
    assert await ask(plane, SENT)
    await traced.whole()


async def test_a_websocket_is_a_span_that_ends_with_it(plane: DataPlane, traced: Spans) -> None:
    async def socket(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.headers["traceparent"])
        await ws.receive()

    agent = Agent("web")
    agent.mount(Starlette(routes=[WebSocketRoute("/ws", socket)]))
    await plane.add(agent)
    async with plane.client.ws_connect("/agents/web/ws", headers=SENT) as ws:
        seen = await ws.receive_str()
        assert traced.of(SpanKind.SERVER) == []
    server, (client,) = await traced.whole()
    assert client.context and seen == f"00-{TRACE}-{format_span_id(client.context.span_id)}-01"
    assert [(span.attributes or {})["http.response.status_code"] for span in (server, client)] == [101, 101]
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await plane.client.ws_connect("/agents/web/nowhere", headers=SENT)
    await until(lambda: len(traced.of(SpanKind.SERVER)) == 2)
    assert (traced.of(SpanKind.CLIENT)[1].attributes or {})["http.response.status_code"] == 403


@pytest.mark.parametrize(
    ("before", "traces"),
    [
        ("sys.modules['opentelemetry'] = None", False),
        ("", False),
        ("from opentelemetry import trace; trace.set_tracer_provider(trace.NoOpTracerProvider())", False),
        ("from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider as T; "
         "trace.set_tracer_provider(T())", True),
    ],
    ids=["no API", "the API alone", "a provider that does nothing", "the SDK"],
)  # fmt: skip
def test_spans_are_made_only_where_a_tracer_provider_is_set(before: str, traces: bool) -> None:
    """In a process of its own: a provider can be set once."""
    code = f"import sys; {before or 'pass'}\nfrom deployments.request import tracing; print(tracing.of_process() is not None)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout.strip(), ran.returncode) == (str(traces), 0), ran.stderr
