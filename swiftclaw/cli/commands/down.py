"""`swiftclaw down`: drain and stop SwiftClaw, and Ray if `up` started it.

The record in the state folder says what `up` started. Without one, SwiftClaw is found by its Serve app on the Ray cluster,
as after `serve run`. What was started from another folder is stopped only when its cluster is named. cluster.yaml is only
read for the location of the state folder, so `down` also works when the file has become invalid.
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
@files.ADDRESS
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long requests in flight may take to finish; then they are aborted.",
)
def down(file: Path, address: str | None, timeout: float) -> None:
    """Drain and stop SwiftClaw.

    FILE defaults to cluster.yaml. Ray is stopped as well if `up` started it; otherwise only the Serve apps of SwiftClaw
    are removed. A SwiftClaw that was started from another folder is stopped only with --address or RAY_ADDRESS.
    """
    from swiftclaw.cli.ray_cluster import cluster_record

    folder = files.state_dir(file)
    record = cluster_record.load(folder)
    with ProgressReporter(show.err()) as reporter:
        if record is not None and address in (None, "auto", record.address):
            with cluster_record.locked(folder, writable=False):
                _stop(record, folder, timeout, reporter)
            done = "stopped"
        else:
            done = _stop_found(file, address, timeout, reporter)
    click.echo(done)


def _stop_found(file: Path, address: str | None, timeout_s: float, reporter: ProgressReporter) -> str:
    """Stop what runs on the cluster that is found without a record in this folder. Returns what was done."""
    from swiftclaw.cli.ray_cluster import cluster_record, controller, driver, processes, serve_apps

    searches = address in (None, "auto") and driver.named_by_environment() is None
    if searches and (driver.wants_own_cluster() or not processes.ray_addresses()):
        return f"nothing to stop: `{program()} up` has not started anything from {file.absolute().parent}"
    cluster = driver.locate(file, address)
    with driver.connected(cluster.address, cluster.auth_mode):
        cluster.address = driver.gcs_address()
        if controller.APP not in serve_apps.statuses():
            return f"nothing to stop: SwiftClaw does not run on the Ray cluster at {cluster.address}"
        started_from = _started_from()
        if searches and not _is_same(started_from, file):
            raise CommandFailed(_elsewhere(started_from, file, cluster.address))
        folder = _state_dir(file)
        owner = cluster_record.load(folder)
        if owner is None or owner.address != cluster.address:
            _drain_connected(cluster, folder, timeout_s, reporter)
            return f"stopped SwiftClaw on the Ray cluster at {cluster.address}; Ray, which was not started by `up`, still runs"
    with cluster_record.locked(folder, writable=False):
        _stop(owner, folder, timeout_s, reporter)
    return f"stopped what `up` had started from {folder.parent}"


def _started_from() -> str | None:
    """The folder of the running SwiftClaw's cluster.yaml; None when the Controller cannot be asked."""
    from swiftclaw.cli.ray_cluster import controller

    try:
        return controller.current()[1]
    except CommandFailed:
        return None


def _is_same(started_from: str | None, file: Path) -> bool:
    return started_from is not None and Path(started_from).resolve() == file.absolute().parent.resolve()


def _elsewhere(started_from: str | None, file: Path, address: str) -> str:
    here = file.absolute().parent
    if started_from is None:
        return (
            f"the Ray cluster at {address} runs a SwiftClaw that does not answer, so that it is unknown whether it belongs to "
            f"{here}; stop it with `{program()} down --address {address}`"
        )
    return (
        f"nothing was started from {here}; the SwiftClaw on this machine was started from {started_from}: run "
        f"`{program()} down` there, or `{program()} down --address {address}`"
    )


def _state_dir(file: Path) -> Path:
    """The state folder of the running SwiftClaw; that of `file` when the Controller cannot be asked."""
    from swiftclaw.cli.ray_cluster import controller

    try:
        args, folder = controller.current()
    except CommandFailed:
        return files.state_dir(file)
    return Path(folder) / (args.get("stateDir") or files.DEFAULT_STATE_DIR)


def _stop(record: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    from swiftclaw.cli.ray_cluster import cluster_record, local_cluster

    if record.started_ray:
        if local_cluster.is_running(record):
            _drain(record, folder, timeout_s, reporter)
        reporter.report("stopping Ray")
        problem = local_cluster.stop(record, folder)
    else:
        _drain(record, folder, timeout_s, reporter)
        problem = cluster_record.remove(folder)
    if problem:
        reporter.note(problem)


def _drain(record: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    """A cluster that cannot be reached is not an error: there is nothing to drain."""
    from swiftclaw.cli.ray_cluster import driver

    try:
        with driver.connected(record.address, record.auth_mode):
            _drain_connected(record, folder, timeout_s, reporter)
    except CommandFailed as error:
        reporter.note(error.message)


def _drain_connected(record: ClusterRecord, folder: Path, timeout_s: float, reporter: ProgressReporter) -> None:
    from swiftclaw.cli.ray_cluster import serve_apps

    reporter.report(f"draining: requests in flight have up to {timeout_s:g} s to finish")
    shut_down_serve = record.started_serve and not record.started_ray
    left = serve_apps.stop(serve_apps.recorded(folder), timeout_s, shut_down_serve, reporter.report)
    if left:
        reporter.note(f"not stopped within {timeout_s:g} s: {', '.join(left)}")
