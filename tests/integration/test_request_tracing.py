"""The access log and the traces of a real cluster: the lines are where the page says, and Ray Serve's tracer is used."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import Cluster, until

pytestmark = pytest.mark.cluster

AGENT = """
from swiftclaw import Agent

agent = Agent("telling")


@agent.on_message
async def handle(message, request):
    return request.headers.get("traceparent", "")
"""
EXPORTER = """
import json, os
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter


class ToFile(SpanExporter):
    def export(self, spans):
        with open({folder!r} + "/spans." + str(os.getpid()), "a") as file:
            file.writelines(span.to_json(indent=None) + "\\n" for span in spans)


def processors():
    return [SimpleSpanProcessor(ToFile())]
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Traced(Cluster):
    @property
    def environment(self) -> dict[str, str]:
        before = super().environment
        return {
            **before,
            "PYTHONPATH": f"{self.folder}:{before['PYTHONPATH']}",
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "exporter:processors",
            "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
        }

    def ask(self, request_id: str) -> str:
        headers = {"content-type": "application/json", "x-request-id": request_id, "traceparent": f"00-{TRACE}-{'1' * 16}-01"}
        body = json.dumps({"message": "hi"}).encode()
        request = urllib.request.Request(f"{self.url}/agents/telling/messages", body, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(json.loads(answer.read())["reply"])

    def lines(self) -> dict[str, Any]:
        """By request id."""
        files = (self.folder / ".swiftclaw" / "logs" / "ray" / "serve").glob("access_gateway.us-east-1_*.log")
        found = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
        return {line["request_id"]: line for line in found}

    def spans(self) -> list[dict[str, Any]]:
        return [json.loads(line) for file in self.folder.glob("spans.*") for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def traced(stopped: Cluster) -> Iterator[Traced]:
    cluster = Traced(stopped.folder, stopped.port, stopped.admin_port)
    (cluster.folder / "telling.py").write_text(AGENT)
    (cluster.folder / "exporter.py").write_text(EXPORTER.format(folder=str(cluster.folder)))
    logged(cluster, enabled=True)
    yield cluster


def logged(cluster: Traced, *, enabled: bool) -> None:
    regions = {"us-east-1": {"instances": 2}}
    cluster.write({"telling": {"agent": "telling:agent", "regions": regions, "accessLog": {"enabled": enabled}}})
    cluster.up()
    until(lambda: [gateway["current"] for gateway in cluster.gateways()] == [True, True], "both gateways know it")


def test_every_request_has_its_line_in_the_state_folder_until_the_log_is_switched_off(traced: Traced) -> None:
    names = [f"request-{number}" for number in range(20)]
    for name in names:
        traced.ask(name)
    lines = until(lambda: traced.lines() if len(traced.lines()) == 20 else None, "a line for each request")
    assert sorted(lines) == sorted(names)
    assert {line["instance"] for line in lines.values()} == {"instance-1", "instance-2"}
    assert {(line["status"], line["trace_id"]) for line in lines.values()} == {(200, TRACE)}
    logged(traced, enabled=False)
    traced.ask("one-more")
    logged(traced, enabled=True)
    traced.ask("the-last")
    until(lambda: "the-last" in traced.lines(), "the line of the last request")
    assert "one-more" not in traced.lines()


def test_a_trace_goes_through_the_gateway_to_the_agent(traced: Traced) -> None:
    seen = traced.ask("traced")
    match = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-01", seen)
    assert match
    spans = until(
        lambda: [s for s in traced.spans() if s["context"]["span_id"] == f"0x{match[1]}"], "the span that the agent saw"
    )
    (server,) = until(
        lambda: [s for s in traced.spans() if s["context"]["span_id"] == spans[0]["parent_id"]], "the gateway's span above it"
    )
    assert (server["parent_id"], server["attributes"]["swiftclaw.request_id"]) == (f"0x{'1' * 16}", "traced")
    assert (server["kind"], spans[0]["kind"]) == ("SpanKind.SERVER", "SpanKind.CLIENT")
