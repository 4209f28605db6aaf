"""`swiftclaw scale`: another number of instances, without editing the file."""

from __future__ import annotations

from pathlib import Path

import click

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.output import show


@click.command()
@click.argument("agent")
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--region", help="Which region. May be left out where the agent runs in one only.")
@click.option("--instances", required=True, type=click.IntRange(min=0), metavar="N", help="How many it should have.")
def scale(agent: str, file: Path, region: str | None, instances: int) -> None:
    """Set how many instances AGENT has in a region.

    Holds, also over restarts, until an `up` finds another number for the region in FILE (cluster.yaml unless given). Of an
    agent with `scaling` it sets where autoscaling goes on from, within its bounds.
    """
    from swiftclaw.cli import ray_driver
    from swiftclaw.cli.local import cluster_record

    made = cluster_record.load(files.state_dir(file))
    if made is None:
        raise CommandFailed(f"SwiftClaw was not started from {file.absolute().parent}; `{show.program()} up` does that")
    with ray_driver.connected(made.address, made.auth_mode):
        done = ray_driver.scale(agent, region, instances)
    click.echo(done)
