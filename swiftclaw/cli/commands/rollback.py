"""`swiftclaw rollback`: all traffic back to the stable version, at once."""

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
@WAIT
@TIMEOUT
def rollback(agent: str, file: Path, no_wait: bool, timeout: float) -> None:
    """Give all traffic back to the stable version.

    At once. The canary, or the version that is about to take over, is drained and removed.
    """
    from swiftclaw.cli import ray_driver

    with ProgressReporter(show.err()) as reporter:
        with ray_driver.of(file):
            name = ray_driver.rollback(agent)
        line = f"{name} of {agent} gets nothing any more"
        if not no_wait:
            look = partial(follow.going, agent=agent, version=name)
            line = follow.follow(AdminApi(files.admin_url(file)), look, reporter, timeout)
    click.echo(line)
