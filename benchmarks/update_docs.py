"""Copies benchmark results into the documentation: `python benchmarks/update_docs.py`, after a benchmark has run.

README.md and docs/strategies.md mark the copied blocks with `<!-- NAME:begin -->` and `<!-- NAME:end -->`. A test compares
the blocks with `benchmarks/results/`, so that a figure in the text is never older than the measurement.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
ROUTERS = (  # heading, measure, figure, format
    ("req/s, 16 connections", "requests-16", "per_second", ",.0f"),
    ("CPU s per 1,000 requests", "requests-16", "cpu_s_per_1000", ".3f"),
    ("per 1,000 streams", "streams-20", "cpu_s_per_1000", ".2f"),
    ("first chunk, ms", "streams-20", "first_p50_ms", ".1f"),
    ("MB", "standing", "end_mb", ".0f"),
    ("failed at a kill", "failover", "failed", ",.0f"),
    ("POSTs run twice", "failover", "ran_twice", ",.0f"),
)
ROUTER_TITLES = {
    "haproxy": "HAProxy", "nginx": "nginx", "vllm-router": "vllm-router (Rust)", "sglang-router": "sglang-router (Rust)",
    "swiftclaw": "SwiftClaw",
}  # fmt: skip
SIMULATED = ("round-robin", "least-connections", "response-time", "power of two", "shortest queue")


def comparison() -> str:
    """What it shows, and the machine. Empty before the first run."""
    file = RESULTS / "compare.json"
    if not file.is_file():
        return ""
    document = json.loads(file.read_text("utf-8"))
    fewest, most = min(document["settings"]["connections"]), max(document["settings"]["connections"])
    rows = {(row["contender"], row["connections"]): row for row in document["table"]}
    ours, alone = rows["swiftclaw", most], rows["swiftclaw", fewest]
    serve, fast = (rows[contender, most] for contender in ("serve", "serve-haproxy"))
    finding = (
        f"At {most} connections SwiftClaw answers {ours['ratios']['serve']:.0f} times as many requests per second as Ray Serve "
        f"as installed and {ours['ratios']['serve-haproxy']:.1f} times as many as its high-throughput mode (SwiftClaw's "
        f"slowest round against their fastest: {ours['lowest'] / serve['highest']:.0f} and "
        f"{ours['lowest'] / fast['highest']:.1f} times). It reaches {_percent(ours)} of HAProxy's throughput, and "
        f"{_percent(alone)} with {_connections(fewest)}: the gateway is a Python event loop that shares the cores with the "
        "instances and the load. A gateway process uses at most one core; `replicas` adds processes."
    )
    machine = document["machine"]
    source = (
        f"{document['made']}; {machine['cpu']}, {machine['cores']} cores; Python {machine['versions']['python']}, Ray "
        f"{machine['versions']['ray']}. Versions, method, other connection counts: [compare.md](benchmarks/results/compare.md)."
    )
    return f"{textwrap.fill(f'{finding} {source}', 125, break_long_words=False, break_on_hyphens=False)}\n"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['ratios']['haproxy']:.0f} %"


def _connections(count: int) -> str:
    return "one connection" if count == 1 else f"{count} connections"


def routers() -> str:
    """A line per router: throughput, cost, and what a killed instance cost its clients. Empty before the first run."""
    file = RESULTS / "routers.json"
    if not file.is_file():
        return ""
    document = json.loads(file.read_text("utf-8"))
    table = {(row["contender"], row["measure"]): row["figures"] for row in document["table"]}
    lines = [f"| | {' | '.join(heading for heading, *_ in ROUTERS)} |", f"| --- |{' ---: |' * len(ROUTERS)}"]
    for contender, title in ROUTER_TITLES.items():
        figures = [table.get((contender, measure), {}).get(figure) for _, measure, figure, _ in ROUTERS]
        cells = ["-" if value is None else format(value, spec) for value, (*_, spec) in zip(figures, ROUTERS, strict=True)]
        if set(cells) != {"-"}:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    machine = document["machine"]
    rounds = document["settings"]["rounds"]
    finding = (
        f"A gateway is a Python event loop in a Ray process, and answers {_share(table)} of vllm-router's requests per second. "
        "Of the requests in flight on a killed instance, HAProxy, nginx and SwiftClaw fail those that may have run; the Rust "
        f"routers run them again, POSTs too. {document['made']}, {rounds} round{'s' if rounds > 1 else ''}; {machine['cpu']}, "
        f"{machine['cores']} cores. All figures, and what they do not show: [routers.md](benchmarks/results/routers.md)."
    )
    return "\n".join([*lines, "", textwrap.fill(finding, 125, break_long_words=False, break_on_hyphens=False)]) + "\n"


def _share(table: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    ours, theirs = (table[name, "requests-16"]["per_second"] for name in ("swiftclaw", "vllm-router"))
    return f"{100 * ours / theirs:.0f} %"


def simulation() -> str:
    """Two of the simulation's tables, with the rows that help to choose a strategy."""
    page = (RESULTS / "simulation.md").read_text("utf-8")
    parts = [page.split("\n\n")[1]]
    for title in ("Mean time over the central queue's", "One bad instance"):
        (table,) = re.findall(rf"^## {title}\n\n((?:\|.*\n?)+)", page, re.MULTILINE)
        head, rule, *rows = table.splitlines()
        kept = [row for row in rows if row.removeprefix("| ").startswith(SIMULATED)]
        parts.append("\n".join([f"| {title} {head.removeprefix('|').lstrip()}", rule, *kept]))
    return "\n\n".join(parts) + "\n"


def metrics_cost() -> str:
    """The sentence below the table of metrics-cost.md."""
    (sentence,) = re.findall(r"^Metrics add .*\n", (RESULTS / "metrics-cost.md").read_text("utf-8"), re.MULTILINE)
    return str(sentence)


BLOCKS: Mapping[tuple[str, str], Callable[[], str]] = {  # (page, marker) -> what stands between the marks
    ("README.md", "compare"): comparison,
    ("README.md", "routers"): routers,
    ("docs/monitoring.md", "metrics-cost"): metrics_cost,
    ("docs/strategies.md", "simulation"): simulation,
}


def block(page: str, marker: str) -> str:
    """The text that the page has between the marks now."""
    text = (ROOT / page).read_text("utf-8")
    (content,) = re.findall(rf"<!-- {marker}:begin -->\n(.*?)<!-- {marker}:end -->", text, re.DOTALL)
    return str(content)


def update() -> None:
    for (page, marker), generate in BLOCKS.items():
        old = f"<!-- {marker}:begin -->\n{block(page, marker)}<!-- {marker}:end -->"
        new = f"<!-- {marker}:begin -->\n{generate()}<!-- {marker}:end -->"
        (ROOT / page).write_text((ROOT / page).read_text("utf-8").replace(old, new), "utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    update()
