"""`swiftclaw metrics AGENT`: how the load is shared, how long answers take, what fails, what is open; with bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click
from rich.console import Group, RenderableType
from rich.text import Text

from swiftclaw.cli import admin_api
from swiftclaw.cli.output import show, tables

BAR = 22  # characters of the longest one
PARTS = " ▏▎▍▌▋▊▉█"
Row = Mapping[str, Any]


class MetricView(NamedTuple):
    """One way to look at the instances."""

    about: str
    bar: Callable[[Row], float | None]  # what the bar is as long as
    columns: Sequence[tuple[str, Callable[[Row], str]]]  # behind the bar
    style: str


def _ms(name: str) -> tuple[str, Callable[[Row], str]]:
    return name.upper(), lambda row: tables.number(row[f"{name}_ms"])


METRICS: dict[str, MetricView] = {
    "load-distribution": MetricView(
        "share of the requests of the last minute",
        lambda row: float(row["share"]),
        [("SHARE", lambda row: f"{row['share']:.1f} %"), ("REQUESTS", lambda row: tables.number(row["requests"]))],
        "cyan",
    ),
    "response-times": MetricView(
        "milliseconds, last minute; the bar is p95",
        lambda row: row["p95_ms"],
        [_ms("mean"), _ms("p50"), _ms("p95"), _ms("p99")],
        "magenta",
    ),
    "errors": MetricView(
        "percent of the answers of the last minute",
        lambda row: float(row["error_rate"]),
        [("ERRORS", lambda row: f"{row['error_rate']:.1f} %"), ("SINCE START", lambda row: tables.number(row["errors"]))],
        "red",
    ),
    "connections": MetricView(
        "requests in flight now",
        lambda row: float(row["connections"]),
        [("CONN", lambda row: tables.number(row["connections"])), ("CPU %", lambda row: tables.number(row["cpu"]))],
        "blue",
    ),
}


@click.command()
@click.argument("agent")
@click.option(
    "--metric", type=click.Choice(list(METRICS)), default="load-distribution", show_default=True, help="What to show."
)
@show.reading
def metrics(agent: str, metric: str, admin: str | None, as_json: bool, watch: bool) -> None:
    """Show how the instances of AGENT do, with bars."""
    server = admin_api.find(admin)
    if metric == "load-distribution":
        show.present(lambda: server.load(agent), lambda load: table(metric, load["instances"]), as_json=as_json, watch=watch)
    else:
        show.present(lambda: server.instances(agent), lambda rows: table(metric, rows), as_json=as_json, watch=watch)


def table(metric: str, rows: Iterable[Row]) -> RenderableType:
    """A line for each instance; the longest bar is the largest value."""
    listed, chosen = list(rows), METRICS[metric]
    if not listed:
        return Text("no instances")
    made = tables.headed("INSTANCE", "REGION", "VERSION", "", *(f"{title}>" for title, _ in chosen.columns))
    largest = max((chosen.bar(row) or 0.0 for row in listed), default=0.0)
    for row in listed:
        shown = Text(bar(chosen.bar(row) or 0.0, largest), style=chosen.style)
        made.add_row(
            Text(row["id"]), Text(row["region"]), Text(row["version"]), shown, *(value(row) for _, value in chosen.columns)
        )
    return Group(Text(f"{metric}: {chosen.about}", style="dim"), made)


def bar(value: float, largest: float) -> str:
    """Up to BAR characters, to an eighth of one; what is not nothing is at least that."""
    if value <= 0 or largest <= 0:
        return ""
    eighths = max(1, round(8 * BAR * value / largest))
    return PARTS[8] * (eighths // 8) + PARTS[eighths % 8].strip()
