"""Writes the results: every run as JSON, and a Markdown page with the tables and the notes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from routing import notes

TITLES = {
    "direct": "the stub, called directly",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "vllm-router": "vllm-router (Rust)",
    "sglang-router": "sglang-router (Rust)",
    "swiftclaw": "SwiftClaw, 1 gateway",
    "swiftclaw-2": "SwiftClaw, 2 gateways",
    "swiftclaw-w1": "SwiftClaw, 1 worker",
    "swiftclaw-w2": "SwiftClaw, 2 workers",
    "instance": "SwiftClaw's instance, called directly",
}
Figures = Mapping[str, float]
Table = Mapping[tuple[str, str], Mapping[str, Any]]  # (contender, measure) -> the row of the document
Column = tuple[str, str, str, str]  # heading, measure, figure, format
REQUESTS: Sequence[Column] = (
    ("req/s, 1 conn.", "requests-1", "per_second", ",.0f"),
    ("p50 ms, 1 conn.", "requests-1", "p50_ms", ".2f"),
    ("p99 ms, 1 conn.", "requests-1", "p99_ms", ".2f"),
    ("req/s, 16 conn.", "requests-16", "per_second", ",.0f"),
    ("p99 ms, 16 conn.", "requests-16", "p99_ms", ".2f"),
    ("req/s, 64 conn.", "requests-64", "per_second", ",.0f"),
    ("p99 ms, 64 conn.", "requests-64", "p99_ms", ".2f"),
    ("p50 ms at a fixed rate", "paced", "p50_ms", ".2f"),
    ("p99 ms at a fixed rate", "paced", "p99_ms", ".2f"),
)
STREAMS: Sequence[Column] = (
    ("first chunk p50 ms", "first_p50_ms", "", ".2f"),
    ("p99", "first_p99_ms", "", ".2f"),
    ("last chunk p50 ms", "last_p50_ms", "", ".1f"),
    ("p99", "last_p99_ms", "", ".1f"),
    ("chunk delay p50 ms", "delay_p50_ms", "", ".2f"),
    ("p99", "delay_p99_ms", "", ".2f"),
    ("chunks lost", "lost_chunks", "", ",.0f"),
    ("streams out of order", "disordered", "", ",.0f"),
)
COST: Sequence[Column] = (
    ("CPU s per 1,000 requests, 1 conn.", "requests-1", "cpu_s_per_1000", ".3f"),
    ("16 conn.", "requests-16", "cpu_s_per_1000", ".3f"),
    ("64 conn.", "requests-64", "cpu_s_per_1000", ".3f"),
    ("CPU s per 1,000 streams, 20 at a time", "streams-20", "cpu_s_per_1000", ".2f"),
    ("500 at a time", "streams-500", "cpu_s_per_1000", ".2f"),
    ("RSS MB at the start", "standing", "start_mb", ".0f"),
    ("after the load", "standing", "end_mb", ".0f"),
    ("of a core without load", "standing", "idle_cores", ".1%"),
)
FAILOVER: Sequence[Column] = (
    ("requests", "failover", "requests", ",.0f"),
    ("under way at the kill", "failover", "under_way", ",.0f"),
    ("failed", "failover", "failed", ",.0f"),
    ("ran twice", "failover", "ran_twice", ",.0f"),
    ("slowest request ms", "failover", "slowest_ms", ",.0f"),
    ("longest time without an answer ms", "failover", "gap_ms", ",.0f"),
)


def tables(document: Mapping[str, Any]) -> list[str]:
    """All tables, as Markdown."""
    table: Table = {(row["contender"], row["measure"]): row for row in document["table"]}
    settings = document["settings"]
    ranges = [(f"req/s, {count} conn.", f"requests-{count}", "per_second", ",.0f") for count in settings["connections"]]
    lines = ["## Requests", "", *_table(table, REQUESTS, _median), ""]
    more = (("errors", _errors), ("adds to p50 ms, 1 conn.", _added))
    lines += ["Range of the rounds, errors of all, and what the router adds to its direct call:", ""]
    lines += [*_table(table, ranges, _range, more), ""]
    for concurrent, total in settings["streams"].items():
        columns = [(heading, f"streams-{concurrent}", figure, spec) for heading, figure, _, spec in STREAMS]
        lines += [f"## {concurrent} streams at a time, {total:,} in each round", "", *_table(table, columns, _median), ""]
    lines += ["## Cost of the router", "", *_table(table, COST, _median), ""]
    lines += ["## One of two instances is killed", "", *_table(table, FAILOVER, _median)]
    return lines


def as_markdown(document: Mapping[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# SwiftClaw and other routers on one machine",
        "",
        f"{document['made']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}; "
        f"{versions}.",
        f"{settings['rounds']} round(s), interleaved (A B C A B C …), one contender at a time; "
        f"{settings['seconds']} s of each load, after {settings['warm_up_s']} s of warm-up; the fixed rate is "
        f"{settings['rate']} requests per second. Made by `python benchmarks/routers.py`; every run is in `routers.json`.",
        "",
        "![Requests per second, CPU time, first chunk and memory of each router](routers.svg)",
        "",
        *tables(document),
        "",
        *(f"Left out: {why}\n" for why in document["left_out"]),
        notes.text(settings["rate"], settings["threads"], _beside(document["table"])),
        "",
        f"Load average before the start: {machine['load_before']}.",
        "",
    ]
    return "\n".join(lines)


def write(folder: Path, document: Mapping[str, Any]) -> None:
    """routers.json, routers.md and, where matplotlib is installed, routers.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "routers.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "routers.md").write_text(as_markdown(document))
    if importlib.util.find_spec("matplotlib") is not None:
        from routing import plots

        plots.draw(folder / "routers.svg", document["table"])


Cell = Callable[[Mapping[str, Any] | None, str, str], str]


def _table(
    table: Table, columns: Sequence[Column], cell: Cell, more: Sequence[tuple[str, Callable[[Table, str], str]]] = ()
) -> list[str]:
    """A row per contender that has any of the columns' figures. `more`: headings and cells of other columns."""
    headings = ["", *(heading for heading, *_ in columns), *(heading for heading, _ in more)]
    lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    for contender, title in TITLES.items():
        rows = [table.get((contender, measure)) for _, measure, _, _ in columns]
        cells = [cell(row, figure, spec) for row, (_, _, figure, spec) in zip(rows, columns, strict=True)]
        if any(one != "-" for one in cells):
            cells += [of(table, contender) for _, of in more]
            lines.append(f"| {' | '.join([title, *cells])} |")
    return lines


def _median(row: Mapping[str, Any] | None, figure: str, spec: str) -> str:
    return format(row["figures"][figure], spec) if row is not None and figure in row["figures"] else "-"


def _range(row: Mapping[str, Any] | None, figure: str, spec: str) -> str:
    return f"{row['lowest'][figure]:{spec}} to {row['highest'][figure]:{spec}}" if row is not None else "-"


def _errors(table: Table, contender: str) -> str:
    """Of all loads of requests but failover."""
    return f"{sum(row['figures'].get('errors', 0) for (name, _), row in table.items() if name == contender):,.0f}"


def _added(table: Table, contender: str) -> str:
    """The median at one connection beyond that of the direct call."""
    direct = "instance" if contender.startswith("swiftclaw") else "direct"
    found = [table.get((name, "requests-1")) for name in (contender, direct)]
    if contender in ("direct", "instance") or None in found:
        return "-"
    own, base = (row["figures"]["p50_ms"] for row in found if row is not None)
    return f"{own - base:.3f}"


def _beside(table: Sequence[Mapping[str, Any]]) -> str:
    found = {row["measure"]: row["figures"] for row in table if row["contender"] == "swiftclaw"}
    if "standing" not in found or "requests-16" not in found:
        return "not measured in this run"
    return (
        f"{found['standing']['beside_mb']:,.0f} MB and {found['requests-16']['beside_cores']:.2f} of a core while requests run"
    )
