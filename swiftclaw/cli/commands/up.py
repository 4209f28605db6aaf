"""`swiftclaw up`: from a file to running agents, on the running Ray cluster or on one that it starts.

When a step fails or Ctrl-C is pressed, everything it started is stopped again, but for a Ray node that replaces a lost one:
its instances may serve already. A second `up` applies changes of the file.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.commands.check import note, warn, warnings_of
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.output import show
from swiftclaw.cli.program import program
from swiftclaw.cli.progress.reporter import ProgressReporter
from swiftclaw.cli.progress.startup import StartupProgress, of_controller, of_status, with_versions
from swiftclaw.cli.undo import Undo, interruptible, undoing

if TYPE_CHECKING:
    from cluster.config import Settings
    from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord

POLL_S = 0.5
APPLIED_S = 3.0  # after a change, the admin port may show the previous state for so long
UNDO_S = 30.0


@click.command()
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    help="The Ray cluster to join (host:port), or `local` to start one. Default: the one running on this machine, if any.",
)
@click.option(
    "--timeout",
    default=180.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until all instances are healthy.",
)
def up(file: Path, address: str | None, timeout: float) -> None:
    """Start SwiftClaw and wait until it is healthy.

    FILE defaults to cluster.yaml. Joins the running Ray cluster, or starts a local one with a Ray node per region.
    Run it again to apply changes in FILE; nothing else is restarted.
    """
    from swiftclaw.cli.output.welcome import welcome
    from swiftclaw.cli.ray_cluster import cluster_record

    settings = files.load(file)
    note(settings)
    warn(warnings_of(settings, file))
    with cluster_record.locked(Path(settings.state_dir)), interruptible(), ProgressReporter(show.err()) as reporter:
        startup = Up(settings, Path(settings.state_dir), timeout, reporter)
        with startup.ray_cluster(address) as (cluster, is_new):
            startup.deploy(cluster, is_new)
    welcome(settings, cluster, AdminApi(files.url(settings.admin.host, settings.admin.port)))


@dataclass(frozen=True)
class Up:
    """One run of `up`."""

    settings: Settings
    folder: Path
    timeout_s: float
    reporter: ProgressReporter

    @contextlib.contextmanager
    def ray_cluster(self, address: str | None) -> Iterator[tuple[ClusterRecord, bool]]:
        """(the Ray cluster to use, whether it was started just now). A new one is stopped again when the block fails."""
        from swiftclaw.cli.ray_cluster import cluster_record, driver, local_cluster, ports

        earlier = self._earlier(address)
        regions = regions_of(self.settings)
        with undoing(lambda: self.reporter.report("cleaning up: stopping what was started")) as undo:
            if earlier is not None and earlier.started_ray:
                missing = local_cluster.missing(earlier, regions)
                recorded = {node.region for node in earlier.nodes}
                if new := [region for region in missing if region not in recorded]:  # a lost node that is back serves again
                    undo.by(lambda: self._stop_nodes(earlier, new))
                local_cluster.add(earlier, self.folder, missing, self.reporter.report)
                yield earlier, False
                return
            existing = earlier.address if earlier else choose(address)
            if existing is not None:
                auth_mode = driver.auth_mode() if address in (None, "auto") else ""
                yield earlier or cluster_record.ClusterRecord(existing, started_ray=False, auth_mode=auth_mode), False
                return
            ports.check_free(self.settings, local=True)
            undo.by(self._stop_recorded)
            taken = {port for _, port in ports.required(self.settings)}
            yield local_cluster.start(regions, self.folder, taken, self.reporter.report), True

    def deploy(self, cluster: ClusterRecord, is_new: bool) -> None:
        """Raises CommandFailed, with the reason, when not everything is healthy in time."""
        from swiftclaw.cli.ray_cluster import controller, driver, serve_apps

        self.reporter.report(f"connecting to the Ray cluster at {cluster.address}")
        with (
            driver.connected(cluster.address, cluster.auth_mode),
            undoing(lambda: self.reporter.report("cleaning up: undoing the changes")) as undo,
        ):
            app = serve_apps.statuses().get(controller.APP)
            if app is not None and app.status not in ("DELETING", "DEPLOY_FAILED", "NOT_STARTED"):
                self._adopt(cluster, undo)
                changed = self._apply(undo)
            else:
                self._start(cluster, undo, is_new)
                changed = False
            self._wait(cluster, time.monotonic() + APPLIED_S if changed else 0.0)

    def _earlier(self, address: str | None) -> ClusterRecord | None:
        """The cluster of an earlier `up`, if it still runs. If not, what is left of it is stopped."""
        from swiftclaw.cli.ray_cluster import cluster_record, driver, local_cluster

        record = cluster_record.load(self.folder)
        if record is None:
            return None
        if address not in (None, "auto", "local", record.address):
            raise CommandFailed(
                f"SwiftClaw already runs from this folder on the Ray cluster at {record.address}, not at {address}; "
                f"run `{program()} down` first"
            )
        if record.started_ray and not local_cluster.is_running(record):
            local_cluster.stop(record, self.folder)
            return None
        if not record.started_ray and not driver.is_reachable(record.address):
            cluster_record.remove(self.folder)
            return None
        return record

    def _adopt(self, cluster: ClusterRecord, undo: Undo) -> None:
        """Record what runs already, started by `serve run` or KubeRay, so that later commands find it from this folder."""
        from swiftclaw.cli.ray_cluster import cluster_record

        if cluster_record.load(self.folder) is None:
            cluster.started_serve = False
            cluster_record.save(self.folder, cluster)
            undo.by(lambda: cluster_record.remove(self.folder))

    def _apply(self, undo: Undo) -> bool:
        """Apply the file to the running Controller. Returns whether it changed anything."""
        from swiftclaw.cli.ray_cluster import controller

        before, folder = controller.current()
        if Path(folder).resolve() != Path(self.settings.folder).resolve():
            raise CommandFailed(
                f"SwiftClaw already runs on this Ray cluster, from {folder}; run `{program()} down` there first"
            )
        args = self.settings.to_args()
        changed = args != before
        if changed:
            self.reporter.report("applying the changes")
        controller.apply(args, self.settings.folder)  # also without a change: what could not start is tried again
        if changed:
            undo.by(lambda: controller.apply(before, folder))
        return changed

    def _start(self, cluster: ClusterRecord, undo: Undo, is_new: bool) -> None:
        from swiftclaw.cli.ray_cluster import cluster_record, driver, ports, serve_apps

        if not cluster.started_ray:
            if driver.is_local(cluster.address):
                ports.check_free(self.settings, local=False)
            cluster.started_serve = not serve_apps.serve_is_running()
            cluster_record.save(self.folder, cluster)
            undo.by(lambda: cluster_record.remove(self.folder))
        if not is_new:
            undo.by(lambda: serve_apps.stop(serve_apps.recorded(self.folder), UNDO_S, cluster.started_serve))
        self.reporter.report("deploying the Controller")
        serve_apps.deploy(self.settings.to_args(), self.settings.folder, cluster.started_ray)

    def _wait(self, cluster: ClusterRecord, not_before: float) -> None:
        from swiftclaw.cli.ray_cluster import local_cluster

        api = AdminApi(files.url(self.settings.admin.host, self.settings.admin.port))
        deadline = time.monotonic() + self.timeout_s
        while True:
            progress = self._progress(api)
            self.reporter.report(str(progress))
            now = time.monotonic()
            if now >= not_before and progress.failed:
                raise CommandFailed("\n".join(progress.failed))
            if now >= not_before and progress.done:
                return
            if cluster.started_ray and not local_cluster.is_running(cluster):
                raise CommandFailed(f"Ray stopped unexpectedly (see {self.folder / 'logs'})")
            if now > deadline:
                raise CommandFailed(f"not ready after {self.timeout_s:g} s; still missing: {'; '.join(progress.missing)}")
            time.sleep(POLL_S)

    def _progress(self, api: AdminApi) -> StartupProgress:
        from swiftclaw.cli.ray_cluster import controller, serve_apps

        try:
            status = api.status()
            versions = {name: agent.version for name, agent in self.settings.agents.items()}
            return with_versions(of_status(status, edges_of(self.settings), self.settings.agents), status, versions)
        except AdminUnreachable:
            app = serve_apps.statuses().get(controller.APP, serve_apps.ServeApp("NOT_STARTED", ""))
            return of_controller(app.message, app.status == "DEPLOY_FAILED")

    def _stop_nodes(self, cluster: ClusterRecord, regions: list[str]) -> None:
        from swiftclaw.cli.ray_cluster import local_cluster

        local_cluster.stop_nodes(cluster, self.folder, [node for node in cluster.nodes if node.region in regions])

    def _stop_recorded(self) -> None:
        from swiftclaw.cli.ray_cluster import cluster_record, local_cluster

        record = cluster_record.load(self.folder)
        if record is not None:
            local_cluster.stop(record, self.folder)


def choose(address: str | None) -> str | None:
    """The address of the cluster to join: the given one, else the one running on this machine. None: start one."""
    from swiftclaw.cli.ray_cluster import driver

    if address == "local":
        return None
    if address and address != "auto":
        return address
    running = driver.on_this_machine()
    if address and running is None:
        raise CommandFailed("no Ray cluster is running on this machine; start one with --address local")
    return running


def regions_of(settings: Settings) -> list[str]:
    """Every region that needs a Ray node. The first, where the first gateway runs, gets the head node."""
    names = [*(gateway.region for gateway in settings.gateways), *settings.regions]
    return list(dict.fromkeys(names))


def edges_of(settings: Settings) -> dict[tuple[str, int, str], int]:
    """(host, port, region) -> the gateway replicas that should run there."""
    replicas: Counter[tuple[str, int, str]] = Counter()
    for gateway in settings.gateways:
        replicas[gateway.host, gateway.port, gateway.region] += gateway.replicas
    return dict(replicas)
