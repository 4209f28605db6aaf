"""`swiftclaw test failover AGENT`: take an instance out under probe traffic and report what clients notice.

It refuses to take out the only healthy instance. An instance that is held unhealthy is released when the test ends: at once
after Ctrl-C; after the duration if this program is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cluster.instance_state import HEALTHY
from swiftclaw.cli import admin_api, files
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.failover.report import FailoverReport
from swiftclaw.cli.output import show
from swiftclaw.cli.progress.reporter import ProgressReporter

MODES = ("kill", "drain", "unhealthy")  # as in cluster/fleet/fault_injection.py, which is too slow to import for --help
SHORTEST_S, LONGEST_S = 1.0, 3600.0

Row = Mapping[str, Any]  # an instance as the admin port shows it


def _duration(_: click.Context, __: click.Parameter, value: str) -> float:
    from cluster.config.mistakes import ConfigError
    from cluster.config.values import duration

    try:
        seconds = duration(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise click.BadParameter(f"{value} is not between 1s and 1h")
    return seconds


@click.command()
@click.argument("agent")
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--instance", required=True, metavar="NAME", help="The instance to take out of service, for example instance-1.")
@click.option(
    "--mode", type=click.Choice(MODES), default="kill", show_default=True, help="How to take the instance out of service."
)
@click.option("--duration", default="10s", show_default=True, callback=_duration, help="How long to observe, 1s to 1h.")
@click.option("--rate", type=click.FloatRange(1, 1000), default=50.0, show_default=True, help="Probe requests per second.")
@click.option("--force", is_flag=True, help="Proceed even if no other instance is healthy.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--admin", metavar="URL", help="The admin port. Default: the one in FILE.")
@files.ADDRESS
def failover(
    agent: str,
    file: Path,
    instance: str,
    mode: str,
    duration: float,
    rate: float,
    force: bool,
    as_json: bool,
    admin: str | None,
    address: str | None,
) -> None:
    """Take an instance out of service and report what clients see.

    The test sends probe requests to AGENT throughout. Modes: kill: the instance's process is killed. drain: it finishes
    its requests, then its process ends. unhealthy: it counts as unhealthy for the duration. FILE defaults to cluster.yaml.
    Exit status 1 if a request was lost that could have been saved, or the instance did not come back.
    """
    from swiftclaw.cli.failover import report_tables
    from swiftclaw.cli.ray_cluster import driver

    api = admin_api.admin_port(admin or files.admin_url(file))
    rows = api.instances(agent)
    status = api.status()
    row = check_permitted(rows, agent, instance, force)
    addresses = gateway_urls(status)
    about = next(entry for entry in status["agents"] if entry["name"] == agent)
    with ProgressReporter(show.err()) as reporter, driver.connected_to(file, address):
        report = conduct(api, about, rows, row, addresses, mode, duration, rate, reporter)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        show.out().print(report_tables.tables(report))
        show.out().print(report_tables.verdict(report), soft_wrap=True)
    if not report.passed:
        raise CommandFailed(report.verdict if as_json else f"the failover test of {instance} failed")


def check_permitted(rows: Sequence[Row], agent: str, instance: str, force: bool) -> Row:
    """The instance's row. Raises CommandFailed when it must not be taken out."""
    row = next((row for row in rows if row["id"] == instance), None)
    if row is None:
        raise CommandFailed(f"{agent} has no instance {instance!r} (it has: {', '.join(row['id'] for row in rows) or 'none'})")
    if row["state"] != HEALTHY:
        reason = f" ({row['health']['reason']})" if row["health"]["reason"] else ""
        raise CommandFailed(
            f"{instance} of {agent} is {row['state']}{reason}; only a healthy instance can be taken out of service"
        )
    if not force and _healthy_others(rows, instance) == 0:
        raise CommandFailed(
            f"{instance} is the only healthy instance of {agent}: without it no request can be answered "
            "(--force takes it out anyway)"
        )
    return row


def gateway_urls(status: Mapping[str, Any]) -> list[str]:
    """The public addresses. Raises CommandFailed when there are none."""
    edges = {(one["host"], one["port"], bool(one.get("tls"))) for one in status["gateways"]}
    if not edges:
        raise CommandFailed("no gateway is running, so no request can be answered; `swiftclaw status` shows why")
    urls = [(files.url(host, port), tls) for host, port, tls in sorted(edges)]
    return [url.replace("http://", "https://", 1) if tls else url for url, tls in urls]


def conduct(
    api: admin_api.AdminApi,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    row: Row,
    addresses: list[str],
    mode: str,
    duration_s: float,
    rate: float,
    reporter: ProgressReporter,
) -> FailoverReport:
    """Run the test. `about`: the agent as the admin port shows it."""
    from swiftclaw.cli.failover import evaluation, shares, trial
    from swiftclaw.cli.ray_cluster import controller

    agent, instance = about["name"], row["id"]
    has_share = about["strategy"] != "geographic" and shares.expected(rows, about)[instance] > 0
    plan = trial.TrialPlan(agent, mode, duration_s, rate, _healthy_others(rows, instance), has_share, row)
    run = trial.TrialRun(
        plan,
        addresses,
        rows=lambda: api.instances(agent),
        take_out=lambda: controller.take_out(agent, instance, mode, duration_s),
        report=reporter.report,
    )
    try:
        result, probes = asyncio.run(run())
    except BaseException:  # in particular Ctrl-C
        if mode == "unhealthy":
            with contextlib.suppress(CommandFailed):
                controller.take_out(agent, instance, mode, 0)
        raise
    expected = shares.expected(shares.without(rows, instance, mode), about)
    expected.pop(instance, None)
    return evaluation.evaluate(result, probes, about["strategy"], expected, shares.exact(about))


def _healthy_others(rows: Sequence[Row], instance: str) -> int:
    return sum(row["state"] == HEALTHY and row["id"] != instance for row in rows)
