"""`swiftclaw promote`: another share of the traffic for the canary; or its analysis pauses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.commands.deploy import FILE, TIMEOUT, WAIT
from swiftclaw.cli.output import follow, show
from swiftclaw.cli.output.reporter import ProgressReporter


@click.command()
@click.argument("agent")
@FILE
@click.option("--canary", type=click.FloatRange(0, 100, min_open=True), metavar="N", help="How many percent it shall have.")
@click.option("--pause", "pausing", flag_value="pause", help="The analysis moves it no further.")
@click.option("--resume", "pausing", flag_value="resume", help="The analysis goes on.")
@WAIT
@TIMEOUT
def promote(agent: str, file: Path, canary: float | None, pausing: str | None, no_wait: bool, timeout: float) -> None:
    """Move AGENT's canary to N percent of the traffic.

    It gets them as soon as it has the instances for that. 100 makes it the stable version, and drains the one before.
    """
    from swiftclaw.cli import ray_driver

    if (canary is None) == (pausing is None):
        raise click.UsageError("give one of --canary N, --pause and --resume")
    with ProgressReporter(show.err()) as reporter:
        with ray_driver.of(file):
            name = ray_driver.pause(agent, pausing == "pause") if canary is None else ray_driver.promote(agent, canary)
        if canary is None:
            line = f"the analysis of {name} of {agent} {'pauses' if pausing == 'pause' else 'goes on'}"
        elif no_wait:
            line = f"{agent}: {canary:g} % are asked for {name}"
        else:
            look = partial(follow.coming, agent=agent, version=name, percent=canary)
            line = follow.follow(AdminApi(files.admin_url(file)), look, reporter, timeout)
    click.echo(line)
