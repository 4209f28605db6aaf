"""The report of a failover test as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swiftclaw.cli.failover.report import ErrorCount, FailoverReport, RequestCounts, TrafficShares
from swiftclaw.cli.output.tables import headed

BAR = 24  # characters of the longest bar
WHAT_HAPPENED = {"kill": "killed", "drain": "drained", "unhealthy": "marked unhealthy"}


def tables(report: FailoverReport) -> RenderableType:
    parts: list[RenderableType] = [_timeline(report), Text(), _shares(report.shares), Text(), _figures(report)]
    if report.errors:
        parts += [Text(), _errors(report.errors)]
    return Group(*parts, Text())


def verdict(report: FailoverReport) -> Text:
    """One line, to be printed without wrapping: scripts read its first word."""
    return Text(report.verdict, style="green" if report.passed else "bold red")


def _timeline(report: FailoverReport) -> RenderableType:
    """One row per bucket, with a bar for what the instance answered."""
    table = headed("SECOND>", "REQUESTS>", "FAILED>", f"BY {report.instance.upper()}", "")
    largest = max([1, *(bucket.by_instance for bucket in report.timeline.buckets)])
    for bucket in report.timeline.buckets:
        bar = "█" * round(BAR * bucket.by_instance / largest)
        table.add_row(
            str(bucket.from_s), str(bucket.requests), Text(str(bucket.failed), style="red" if bucket.failed else ""),
            Text(f"{bucket.by_instance:>4} {bar}", style="cyan"), Text(_marks(report, bucket.from_s), style="yellow"),
        )  # fmt: skip
    return table


def _marks(report: FailoverReport, from_s: int) -> str:
    """What happened to the instance within the bucket."""
    marks = [(0.0, WHAT_HAPPENED[report.mode])]
    if report.back_s is not None:
        marks.append((report.back_s, "back"))
    return ", ".join(text for at_s, text in marks if from_s <= at_s < from_s + report.timeline.bucket_s)


def _shares(shares: TrafficShares) -> RenderableType:
    table = headed("WHILE AWAY", "REQUESTS>", "EXPECTED %>", "OBSERVED %>")
    for one in shares.instances:
        table.add_row(Text(one.id), str(one.requests), _percent(one.expected), _percent(one.observed))
    if shares.exact:
        return table
    return Group(table, Text("EXPECTED is by weight alone; load, distance or sessions also affect the choice here"))


def _figures(report: FailoverReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    table.add_row("requests", _summary(report.requests))
    table.add_row("saved by a retry", str(report.requests.saved_by_retry))
    table.add_row("last answer", f"after {report.last_answer_s:.2f} s")
    table.add_row("back and serving", "not seen" if report.back_s is None else f"after {report.back_s:.2f} s")
    return table


def _summary(counts: RequestCounts) -> str:
    return f"{counts.sent} sent, {counts.ok} ok, {counts.refused} refused, {counts.failed} failed"


def _errors(errors: Sequence[ErrorCount]) -> RenderableType:
    table = headed("ERROR", "COUNT>", "LOST>", "FIRST MESSAGE")
    for error in errors:
        table.add_row(Text(error.type), str(error.count), str(error.lost), Text(error.message))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
