"""`swiftclaw rollback`: all traffic back to the stable version, at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from swiftclaw.cli import files, follow, show
from swiftclaw.cli.api import Api
from swiftclaw.cli.deploy import FILE, TIMEOUT, WAIT
from swiftclaw.cli.reporter import Reporter


@click.command()
@click.argument("agent")
@FILE
@WAIT
@TIMEOUT
def rollback(agent: str, file: Path, no_wait: bool, timeout: float) -> None:
    """Give all traffic back to the stable version.

    At once. The canary, or the version that is about to take over, is drained and removed.
    """
    from swiftclaw.cli import driver

    with Reporter(show.err()) as reporter:
        with driver.of(file):
            name = driver.rollback(agent)
        line = f"{name} of {agent} gets nothing any more"
        if not no_wait:
            look = partial(follow.going, agent=agent, version=name)
            line = follow.follow(Api(files.admin_url(file)), look, reporter, timeout)
    click.echo(line)
