"""`swiftclaw down`: drain and stop what `up` started, and nothing else.

It goes by the record that `up` left in the state folder; the file is only asked where that folder is, so that `down` works
with a file that has become wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.output import show
from swiftclaw.cli.output.reporter import ProgressReporter

if TYPE_CHECKING:
    from swiftclaw.cli.local.cluster_record import ClusterRecord


@click.command()
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long requests may take to finish.")
def down(file: Path, timeout: float) -> None:
    """Stop what `up` started; requests finish first.

    FILE is cluster.yaml unless given.
    """
    from swiftclaw.cli.local import cluster_record

    folder = files.state_dir(file)
    if not (folder / cluster_record.FILE).exists():
        click.echo(f"nothing to stop: `{show.program()} up` has started nothing from {file.absolute().parent}")
        return
    with cluster_record.alone(folder), ProgressReporter(show.err()) as reporter:
        made = cluster_record.load(folder)
        if made is not None:
            _stop(made, folder, timeout, reporter)
    click.echo("stopped")


def _stop(made: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    from swiftclaw.cli.local import cluster_record, local_cluster

    if made.started_ray:
        if local_cluster.running(made):
            _drain(made, folder, timeout_s, reporter)
        reporter.say("stopping Ray")
        local_cluster.stop(made, folder)
        return
    _drain(made, folder, timeout_s, reporter)
    cluster_record.remove(folder)


def _drain(made: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    """Without an error when the cluster is gone: then there is nothing to drain."""
    from swiftclaw.cli import ray_driver

    reporter.say(f"draining: requests may take up to {timeout_s:g} s to finish")
    try:
        with ray_driver.connected(made.address, made.auth_mode):
            shut_down = made.started_serve and not made.started_ray
            left = ray_driver.remove(ray_driver.remembered(folder), timeout_s, shut_down, reporter.say)
    except CommandFailed as gone:
        reporter.note(gone.message)
        return
    if left:
        reporter.note(f"after {timeout_s:g} s these had not finished: {', '.join(left)}")
