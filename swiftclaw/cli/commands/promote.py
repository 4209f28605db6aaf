"""`swiftclaw promote`: change the canary's share of the traffic, or pause and resume its analysis."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.commands.deploy import FILE, TIMEOUT, WAIT
from swiftclaw.cli.output import show
from swiftclaw.cli.progress import rollout
from swiftclaw.cli.progress.reporter import ProgressReporter


@click.command()
@click.argument("agent")
@FILE
@click.option(
    "--canary", type=click.FloatRange(0, 100, min_open=True), metavar="N", help="The canary's share of the traffic in percent."
)
@click.option("--pause", "analysis", flag_value="pause", help="Pause the canary analysis; the share stays as it is.")
@click.option("--resume", "analysis", flag_value="resume", help="Resume the canary analysis.")
@files.ADDRESS
@WAIT
@TIMEOUT
def promote(
    agent: str, file: Path, canary: float | None, analysis: str | None, address: str | None, no_wait: bool, timeout: float
) -> None:
    """Give AGENT's canary N percent of the traffic.

    The share changes as soon as enough of the canary's instances are healthy. With 100 the canary becomes the stable
    version, and the previous one drains.
    """
    from swiftclaw.cli.ray_cluster import controller, driver

    if (canary is None) == (analysis is None):
        raise click.UsageError("give exactly one of --canary N, --pause and --resume")
    with ProgressReporter(show.err()) as reporter:
        with driver.connected_to(file, address):
            admin = controller.admin_url()
            version = controller.pause(agent, analysis == "pause") if canary is None else controller.promote(agent, canary)
        if canary is None:
            line = f"{agent}: analysis of {version} {'paused' if analysis == 'pause' else 'resumed'}"
        elif no_wait:
            line = f"{agent}: started to move {version} to {canary:g} % of the traffic"
        else:
            step_of = partial(rollout.gaining_traffic, agent=agent, version=version, percent=canary)
            line = rollout.wait(AdminApi(admin), step_of, reporter, timeout)
    click.echo(line)
