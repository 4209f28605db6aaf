"""`swiftclaw metrics AGENT`: load, response times, errors and connections of each instance, with bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click
from rich.console import Group, RenderableType
from rich.text import Text

from swiftclaw.cli import admin_api
from swiftclaw.cli.output import show, tables

BAR = 22  # characters of the longest bar
Row = Mapping[str, Any]


class MetricView(NamedTuple):
    """What one `--metric` shows of each instance."""

    about: str
    bar: Callable[[Row], float | None]  # the value that the bar shows
    columns: Sequence[tuple[str, Callable[[Row], str]]]  # (heading, cell), after the bar
    style: str


def _ms(name: str) -> tuple[str, Callable[[Row], str]]:
    return name.upper(), lambda row: tables.number(row[f"{name}_ms"])


METRICS: dict[str, MetricView] = {
    "load-distribution": MetricView(
        "share of requests, last minute",
        lambda row: float(row["share"]),
        [("SHARE", lambda row: f"{row['share']:.1f} %"), ("REQUESTS", lambda row: tables.number(row["requests"]))],
        "cyan",
    ),
    "response-times": MetricView(
        "milliseconds, last minute; bars show p95",
        lambda row: row["p95_ms"],
        [_ms("mean"), _ms("p50"), _ms("p95"), _ms("p99")],
        "magenta",
    ),
    "errors": MetricView(
        "error rate, last minute",
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
    "--metric", type=click.Choice(list(METRICS)), default="load-distribution", show_default=True, help="The metric to show."
)
@show.reading
def metrics(agent: str, metric: str, admin: str | None, as_json: bool, watch: bool) -> None:
    """Show a metric of AGENT's instances as bars."""
    api = admin_api.admin_port(admin)
    if metric == "load-distribution":
        show.present(lambda: api.load(agent), lambda load: table(metric, load["instances"]), as_json=as_json, watch=watch)
    else:
        show.present(lambda: api.instances(agent), lambda rows: table(metric, rows), as_json=as_json, watch=watch)


def table(metric: str, rows: Iterable[Row]) -> RenderableType:
    """A row for each instance; the longest bar belongs to the largest value."""
    instances, shown = list(rows), METRICS[metric]
    if not instances:
        return Text("no instances")
    output = tables.headed("INSTANCE", "REGION", "VERSION", "", *(f"{title}>" for title, _ in shown.columns))
    largest = max(shown.bar(row) or 0.0 for row in instances)
    for row in instances:
        bar = tables.bar(shown.bar(row) or 0.0, largest, BAR, shown.style)
        cells = (cell(row) for _, cell in shown.columns)
        output.add_row(Text(row["id"]), Text(row["region"]), Text(row["version"]), bar, *cells)
    return Group(Text(f"{metric}: {shown.about}", style="dim"), output)
