"""`swiftclaw down`: drain and stop what `up` started, and nothing else.

The record in the state folder says what that is. cluster.yaml is only read for the location of that folder, so `down` also
works when the file has become invalid.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.output import show
from swiftclaw.cli.program import program
from swiftclaw.cli.progress.reporter import ProgressReporter

if TYPE_CHECKING:
    from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord


@click.command()
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long requests in flight may take to finish; then they are aborted.",
)
def down(file: Path, timeout: float) -> None:
    """Drain and stop what `up` started.

    FILE defaults to cluster.yaml.
    """
    from swiftclaw.cli.ray_cluster import cluster_record

    folder = files.state_dir(file)
    if not (folder / cluster_record.FILE).exists():
        click.echo(f"nothing to stop: `{program()} up` has not started anything from {file.absolute().parent}")
        return
    with cluster_record.locked(folder), ProgressReporter(show.err()) as reporter:
        record = cluster_record.load(folder)
        if record is not None:
            _stop(record, folder, timeout, reporter)
    click.echo("stopped")


def _stop(record: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    from swiftclaw.cli.ray_cluster import cluster_record, local_cluster

    if record.started_ray:
        if local_cluster.is_running(record):
            _drain(record, folder, timeout_s, reporter)
        reporter.report("stopping Ray")
        local_cluster.stop(record, folder)
        return
    _drain(record, folder, timeout_s, reporter)
    cluster_record.remove(folder)


def _drain(record: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    """A cluster that cannot be reached is not an error: there is nothing to drain."""
    from swiftclaw.cli.ray_cluster import driver, serve_apps

    reporter.report(f"draining: requests in flight have up to {timeout_s:g} s to finish")
    try:
        with driver.connected(record.address, record.auth_mode):
            shut_down_serve = record.started_serve and not record.started_ray
            left = serve_apps.stop(serve_apps.recorded(folder), timeout_s, shut_down_serve, reporter.report)
    except CommandFailed as error:
        reporter.note(error.message)
        return
    if left:
        reporter.note(f"not stopped within {timeout_s:g} s: {', '.join(left)}")
