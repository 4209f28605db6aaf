"""`swiftclaw test failover AGENT`: takes an instance away under traffic of its own and says what clients noticed.

It refuses to take the only healthy instance away. One that is held as unhealthy comes back when the test ends, however it
ends: with Ctrl-C at once, and when this program is killed, after the duration.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from swiftclaw.cli import admin_api, files
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.output import show
from swiftclaw.cli.output.reporter import ProgressReporter

MODES = ("kill", "drain", "unhealthy")  # those of cluster/fleet/fault_injection.py, which is not imported for a help text
MOST_S = 3600.0


def _duration(_: click.Context, __: click.Parameter, given: str) -> float:
    from cluster.config.mistakes import ConfigError
    from cluster.config.values import duration

    try:
        seconds = duration(given)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if not 1 <= seconds <= MOST_S:
        raise click.BadParameter(f"{given} is not between 1s and 1h")
    return seconds


@click.command()
@click.argument("agent")
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--instance", required=True, metavar="NAME", help="Which one to take away, such as instance-1.")
@click.option("--mode", type=click.Choice(MODES), default="kill", show_default=True, help="How it goes.")
@click.option("--duration", default="10s", show_default=True, callback=_duration, help="How long to look after that.")
@click.option("--rate", type=click.FloatRange(1, 1000), default=50.0, show_default=True, help="Requests per second.")
@click.option("--force", is_flag=True, help="Even when no healthy instance is left.")
@click.option("--json", "as_json", is_flag=True, help="The report as one object.")
@click.option("--admin", metavar="URL", help="The admin port. Default: that of FILE.")
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
) -> None:
    """Take an instance of AGENT away and report what clients notice.

    kill: its process is killed. drain: it finishes its requests, then its process ends. unhealthy: it is held as
    unhealthy for the duration. Requests of this test's own run all the while. FILE is cluster.yaml unless given.
    Exit status 1 when a request was lost that could have been saved, or the instance did not come back.
    """
    from swiftclaw.cli import ray_driver
    from swiftclaw.cli.failover import view
    from swiftclaw.cli.local import cluster_record

    server = admin_api.find(admin or files.admin_url(file))
    rows = server.instances(agent)
    status = server.status()
    row = permitted(rows, agent, instance, force)
    addresses = gateways(status)
    made = cluster_record.load(files.state_dir(file))
    if made is None:
        raise CommandFailed(f"SwiftClaw was not started from {file.absolute().parent}; `{show.program()} up` does that")
    about = next(entry for entry in status["agents"] if entry["name"] == agent)
    with ProgressReporter(show.err()) as reporter, ray_driver.connected(made.address, made.auth_mode):
        found = conduct(server, about, rows, row, addresses, mode, duration, rate, reporter)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show.out().print(view.report(found))
        show.out().print(view.verdict(found), soft_wrap=True)
    if not found["passed"]:
        raise CommandFailed(found["verdict"] if as_json else f"the failover test of {instance} failed")


def permitted(rows: Sequence[Mapping[str, Any]], agent: str, instance: str, force: bool) -> Mapping[str, Any]:
    """The instance's row. Raises CommandFailed when it may not be taken away."""
    row = next((row for row in rows if row["id"] == instance), None)
    if row is None:
        raise CommandFailed(f"{agent} has no instance {instance!r} (it has: {', '.join(row['id'] for row in rows) or 'none'})")
    if row["state"] != "healthy":
        why = f" ({row['health']['reason']})" if row["health"]["reason"] else ""
        raise CommandFailed(f"{instance} of {agent} is {row['state']}{why}, not healthy: there is nothing to take away")
    if not force and _others(rows, instance) == 0:
        raise CommandFailed(
            f"{instance} is the only healthy instance of {agent}: without it nobody answers (--force does it anyway)"
        )
    return row


def gateways(status: Mapping[str, Any]) -> list[str]:
    """The public addresses. Raises CommandFailed when there are none."""
    edges = {(one["host"], one["port"], bool(one.get("tls"))) for one in status["gateways"]}
    if not edges:
        raise CommandFailed("no gateway is there: nobody could answer")
    urls = [(files.url(host, port), tls) for host, port, tls in sorted(edges)]
    return [url.replace("http://", "https://", 1) if tls else url for url, tls in urls]


def conduct(
    server: admin_api.AdminApi,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    row: Mapping[str, Any],
    addresses: list[str],
    mode: str,
    duration_s: float,
    rate: float,
    reporter: ProgressReporter,
) -> dict[str, Any]:
    """Run it and make the report. `about`: the agent as the admin port gives it."""
    from swiftclaw.cli import ray_driver
    from swiftclaw.cli.failover import report, shares, trial

    agent, instance = about["name"], row["id"]
    has_share = about["strategy"] != "geographic" and shares.expected(rows, about)[instance] > 0
    order = trial.TrialPlan(agent, mode, duration_s, rate, _others(rows, instance), has_share, row)
    run = trial.TrialRun(
        order,
        addresses,
        rows=lambda: server.instances(agent),
        take=lambda: ray_driver.take_away(agent, instance, mode, duration_s),
        say=reporter.say,
    )
    try:
        course, probes = asyncio.run(run())
    except BaseException:  # Ctrl-C above all
        if mode == "unhealthy":
            with contextlib.suppress(CommandFailed):
                ray_driver.take_away(agent, instance, mode, 0)
        raise
    expected = shares.expected(shares.without(rows, instance, mode), about)
    expected.pop(instance, None)
    exact = shares.exact(about)
    return report.report(course, probes, about["strategy"], expected, exact)


def _others(rows: Sequence[Mapping[str, Any]], instance: str) -> int:
    return sum(row["state"] == "healthy" and row["id"] != instance for row in rows)
