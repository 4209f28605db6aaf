"""`swiftclaw rollback`: return all traffic to the stable version at once."""

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
@files.ADDRESS
@WAIT
@TIMEOUT
def rollback(agent: str, file: Path, address: str | None, no_wait: bool, timeout: float) -> None:
    """Return all of AGENT's traffic to the stable version.

    This takes effect at once. The canary, or the version that is taking over, drains and is removed.
    """
    from swiftclaw.cli.ray_cluster import controller, driver

    with ProgressReporter(show.err()) as reporter:
        with driver.connected_to(file, address):
            admin = controller.admin_url()
            version = controller.rollback(agent)
        line = f"{agent}: {version} receives no more traffic"
        if not no_wait:
            step_of = partial(rollout.losing_traffic, agent=agent, version=version)
            line = rollout.wait(AdminApi(admin), step_of, reporter, timeout)
    click.echo(line)
