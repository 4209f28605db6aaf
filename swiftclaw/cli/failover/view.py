"""The report of a failover test as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BAR = 24
Report = Mapping[str, Any]


def report(found: Report) -> RenderableType:
    parts: list[RenderableType] = [_timeline(found), Text(), _shares(found), Text(), _figures(found)]
    if found["errors"]:
        parts += [Text(), _errors(found)]
    return Group(*parts, Text())


def verdict(found: Report) -> Text:
    """A sentence, to be printed without breaking it: programs look for its first word, too."""
    return Text(found["verdict"], style="green" if found["passed"] else "bold red")


def _timeline(found: Report) -> RenderableType:
    """What began in each slice of time, and a bar for what the instance answered of it."""
    table = _table("SECOND>", "REQUESTS>", "FAILED>", f"BY {found['instance'].upper()}", "")
    buckets = found["timeline"]["buckets"]
    most = max([1, *(bucket["by_instance"] for bucket in buckets)])
    for bucket in buckets:
        failed, by = bucket["failed"], bucket["by_instance"]
        table.add_row(
            str(bucket["from_s"]), str(bucket["requests"]), Text(str(failed), style="red" if failed else ""),
            Text(f"{by:>4} {'█' * round(BAR * by / most)}", style="cyan"),
            Text(_happened(found, bucket["from_s"]), style="yellow"),
        )  # fmt: skip
    return table


def _happened(found: Report, from_s: int) -> str:
    size, back_s = found["timeline"]["bucket_s"], found["back_s"]
    said = {"kill": "killed", "drain": "asked to leave", "unhealthy": "held as unhealthy"}[found["mode"]]
    events = [(0.0, said), (back_s, "back")] if back_s is not None else [(0.0, said)]
    return ", ".join(what for when, what in events if from_s <= when < from_s + size)


def _shares(found: Report) -> RenderableType:
    shares = found["shares"]
    table = _table("WHILE AWAY", "REQUESTS>", "EXPECTED %>", "OBSERVED %>")
    for one in shares["instances"]:
        table.add_row(Text(one["id"]), str(one["requests"]), _percent(one["expected"]), _percent(one["observed"]))
    if shares["exact"]:
        return table
    return Group(table, Text("expected: by weight alone; here load, distance or sessions decide as well"))


def _figures(found: Report) -> RenderableType:
    counts = found["requests"]
    back = "not seen" if found["back_s"] is None else f"after {found['back_s']:.2f} s"
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    for name, value in (
        ("requests", f"{counts['sent']} sent, {counts['ok']} ok, {counts['refused']} refused, {counts['failed']} failed"),
        ("saved by a retry", str(counts["saved_by_retry"])),
        ("last answer", f"after {found['last_answer_s']:.2f} s"),
        ("back and serving", back),
    ):
        table.add_row(name, value)
    return table


def _errors(found: Report) -> RenderableType:
    table = _table("ERROR", "COUNT>", "LOST>", "FOR ONE")
    for error in found["errors"]:
        table.add_row(Text(error["type"]), str(error["count"]), str(error["lost"]), Text(error["message"]))
    return table


def _table(*headings: str) -> Table:
    """A heading that ends in `>` is of a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        number = heading.endswith(">")
        table.add_column(heading.rstrip(">"), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
