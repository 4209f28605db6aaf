"""`swiftclaw scale`: change the number of instances without editing the file."""

from __future__ import annotations

from pathlib import Path

import click

from swiftclaw.cli import files


@click.command()
@click.argument("agent")
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--region", help="The region. Optional if the agent runs in only one.")
@click.option("--instances", required=True, type=click.IntRange(min=0), metavar="N", help="The new number of instances.")
@files.ADDRESS
def scale(agent: str, file: Path, region: str | None, instances: int, address: str | None) -> None:
    """Set the number of AGENT's instances in a region.

    The number stays in force, also across restarts, until `up` finds a new number for the region in FILE (default:
    cluster.yaml). For an agent with `scaling`, autoscaling continues from it, within the agent's bounds.
    """
    from swiftclaw.cli.ray_cluster import controller, driver

    with driver.connected_to(file, address):
        change = controller.scale(agent, region, instances)
    click.echo(change)
