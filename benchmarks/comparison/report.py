"""Writes the results: every run as JSON, and a Markdown page with the table and notes on how to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison.figures import Row, Run

TITLES = {
    "serve": "A. Ray Serve as installed",
    "serve-haproxy": "B. Ray Serve, high-throughput mode",
    "haproxy": "C. HAProxy straight to the instances",
    "swiftclaw": "D. SwiftClaw",
}
NOTES = """\
- A: Serve's Python proxy → ingress deployment → `DeploymentHandle` → two replicas of the no-op agent.
- B: the same with `RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1`: HAProxy → ingress → handle over gRPC.
  In A and B `max_ongoing_requests` is raised from 5 to 1000, so that this setting does not limit throughput.
- C: HAProxy → the two instances of D, without a gateway: the capacity of the instances themselves, without agent features.
- D: one gateway, two instances, started by `swiftclaw up`.

All answer `POST {"message":"hi"}` with the same JSON from the same agent, which does nothing. The comparison therefore measures
proxy overhead; an agent that spends a second in a model call would hide it. The load generator is a closed loop on the same
machine and shares the cores with the contenders; more cores raise all figures, those of B and C most. One connection shows the
latency of the proxy, 64 connections its capacity. req/s, p50 and p99 are medians over the rounds; the range is from the slowest
round to the fastest; errors are summed."""


def as_json(
    made: str, machine: Mapping[str, Any], settings: Mapping[str, Any], runs: Sequence[Run], rows: Sequence[Row]
) -> str:
    document = {
        "made": made,
        "machine": machine,
        "settings": settings,
        "contenders": TITLES,
        "table": [asdict(row) for row in rows],
        "runs": [asdict(run) for run in runs],
    }
    return json.dumps(document, indent=1) + "\n"


def as_markdown(made: str, machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# SwiftClaw and Ray Serve on one machine",
        "",
        f"{made}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}; {versions}.",
        f"{settings['rounds']} rounds of {settings['seconds']} s each, interleaved (A B C D A B C D …), after "
        f"{settings['warm_up_s']} s of warm-up. "
        "Made by `python benchmarks/compare.py`; every run is in `compare.json`.",
        "",
        *table(rows),
        "",
        NOTES,
        "",
        f"One contender ran at a time (C and D together). Load average before the start: {machine['load_before']}.",
        "",
    ]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| connections | | req/s | range | p50 ms | p99 ms | errors | to A | to B | of C |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            f"{row.connections}",
            TITLES[row.contender],
            f"{row.per_second:,.0f}",
            f"{row.lowest:,.0f} to {row.highest:,.0f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.errors}",
            _times(row, "serve"),
            _times(row, "serve-haproxy"),
            f"{100 * row.ratios['haproxy']:.0f} %" if "haproxy" in row.ratios else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(row: Row, reference: str) -> str:
    return f"{row.ratios[reference]:.1f} : 1" if reference in row.ratios else "-"


def write(folder: Path, json_text: str, markdown: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json_text)
    (folder / "compare.md").write_text(markdown)
