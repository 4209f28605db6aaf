"""`swiftclaw up`: from a file to agents that answer, on the running Ray cluster or on one that it starts.

Everything that it starts is undone when something fails or Ctrl-C is pressed. A second `up` applies what changed.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.commands.check import absent_files, warn
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.local.undo import Undo, interruptible, undoing
from swiftclaw.cli.output import show
from swiftclaw.cli.output.progress import Progress, of_controller, of_status, with_versions
from swiftclaw.cli.output.reporter import ProgressReporter

if TYPE_CHECKING:
    from cluster.config import Settings
    from swiftclaw.cli.local.cluster_record import ClusterRecord

POLL_S = 0.5
APPLIED_S = 3.0  # after a change: until then the admin port may still show what was before
UNDO_S = 30.0


@click.command()
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--address", envvar="RAY_ADDRESS", help="The Ray cluster to join. Default: the one that runs here, if any.")
@click.option("--timeout", default=180.0, show_default=True, metavar="SECONDS", help="How long to wait for the instances.")
def up(file: Path, address: str | None, timeout: float) -> None:
    """Start everything, and wait until it answers.

    FILE is cluster.yaml unless given. Joins the running Ray cluster, or starts a local one with a Ray node
    per region. Run again, it applies what changed in FILE and restarts nothing else.
    """
    from swiftclaw.cli.local import cluster_record
    from swiftclaw.cli.output.welcome import welcome

    settings = files.load(file)
    warn(absent_files(settings))
    with cluster_record.alone(Path(settings.state_dir)), interruptible(), ProgressReporter(show.err()) as reporter:
        work = Up(settings, Path(settings.state_dir), timeout, reporter)
        with work.ray_cluster(address) as (cluster, fresh):
            work.deploy(cluster, fresh)
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
        """The Ray cluster to use, and whether it was started for this: then it is stopped again when the block fails."""
        from swiftclaw.cli import ray_driver
        from swiftclaw.cli.local import cluster_record, local_cluster, ports

        known = self._known(address)
        regions = regions_of(self.settings)
        with undoing(lambda: self.reporter.say("undoing what was started")) as undo:
            if known is not None and known.started_ray:
                missing = local_cluster.missing(known, regions)
                if missing:
                    undo.by(lambda: self._stop_nodes(known, missing))
                local_cluster.add(known, self.folder, missing, self.reporter.say)
                yield known, False
                return
            joined = known.address if known else choose(address)
            if joined is not None:
                found = address in (None, "auto")
                yield (
                    known
                    or cluster_record.ClusterRecord(
                        joined, started_ray=False, auth_mode=ray_driver.auth_mode() if found else ""
                    ),
                    False,
                )
                return
            ports.demand(self.settings, here=True)
            undo.by(self._stop_recorded)
            taken = {port for _, port in ports.required(self.settings)}
            yield local_cluster.start(regions, self.folder, taken, self.reporter.say), True

    def deploy(self, cluster: ClusterRecord, fresh: bool) -> None:
        """Raises CommandFailed with the reason when not everything is there in time."""
        from swiftclaw.cli import ray_driver

        self.reporter.say(f"joining the Ray cluster at {cluster.address}")
        with (
            ray_driver.connected(cluster.address, cluster.auth_mode),
            undoing(lambda: self.reporter.say("undoing what was changed")) as undo,
        ):
            app = ray_driver.apps().get(ray_driver.APP)
            if app is not None and app.status not in ("DELETING", "DEPLOY_FAILED", "NOT_STARTED"):
                changed = self._apply(undo)
            else:
                self._start(cluster, undo, fresh)
                changed = False
            self._wait(cluster, time.monotonic() + APPLIED_S if changed else 0.0)

    def _known(self, address: str | None) -> ClusterRecord | None:
        """What an earlier `up` started and still runs; what is left of one that does not is stopped."""
        from swiftclaw.cli import ray_driver
        from swiftclaw.cli.local import cluster_record, local_cluster

        known = cluster_record.load(self.folder)
        if known is None:
            return None
        if address not in (None, "auto", "local", known.address):
            raise CommandFailed(
                f"SwiftClaw was started from here on the Ray cluster at {known.address}, not at {address}; "
                f"`{show.program()} down` stops it"
            )
        if known.started_ray and not local_cluster.running(known):
            local_cluster.stop(known, self.folder)
            return None
        if not known.started_ray and not ray_driver.reachable(known.address):
            cluster_record.remove(self.folder)
            return None
        return known

    def _apply(self, undo: Undo) -> bool:
        from swiftclaw.cli import ray_driver

        before, folder = ray_driver.current()
        if Path(folder).resolve() != Path(self.settings.folder).resolve():
            raise CommandFailed(f"SwiftClaw runs on this Ray cluster already, from {folder}; stop it there first")
        args = self.settings.to_args()
        changed = args != before
        if changed:
            self.reporter.say("applying what changed")
        ray_driver.apply(args, self.settings.folder)  # also when nothing did: what could not start is tried again
        if changed:
            undo.by(lambda: ray_driver.apply(before, folder))
        return changed

    def _start(self, cluster: ClusterRecord, undo: Undo, fresh: bool) -> None:
        from swiftclaw.cli import ray_driver
        from swiftclaw.cli.local import cluster_record, ports

        if not cluster.started_ray:
            if ray_driver.is_here(cluster.address):
                ports.demand(self.settings, here=False)
            cluster.started_serve = not ray_driver.serving()
            cluster_record.save(self.folder, cluster)
            undo.by(lambda: cluster_record.remove(self.folder))
        if not fresh:
            undo.by(lambda: ray_driver.remove(ray_driver.remembered(self.folder), UNDO_S, cluster.started_serve))
        self.reporter.say("deploying")
        ray_driver.deploy(self.settings.to_args(), self.settings.folder, cluster.started_ray)

    def _wait(self, cluster: ClusterRecord, not_before: float) -> None:
        from swiftclaw.cli.local import local_cluster

        api = AdminApi(files.url(self.settings.admin.host, self.settings.admin.port))
        deadline = time.monotonic() + self.timeout_s
        while True:
            progress = self._progress(api)
            self.reporter.say(str(progress))
            now = time.monotonic()
            if now >= not_before and progress.failed:
                raise CommandFailed("\n".join(progress.failed))
            if now >= not_before and progress.done:
                return
            if cluster.started_ray and not local_cluster.running(cluster):
                raise CommandFailed(f"Ray stopped meanwhile (see {self.folder / 'logs'})")
            if now > deadline:
                raise CommandFailed(f"after {self.timeout_s:g} s there is still missing: {'; '.join(progress.missing)}")
            time.sleep(POLL_S)

    def _progress(self, api: AdminApi) -> Progress:
        from swiftclaw.cli import ray_driver

        try:
            status = api.status()
            wanted = {name: agent.version for name, agent in self.settings.agents.items()}
            return with_versions(of_status(status, edges_of(self.settings), self.settings.agents), status, wanted)
        except AdminUnreachable:
            app = ray_driver.apps().get(ray_driver.APP, ray_driver.App("NOT_STARTED", ""))
            return of_controller(app.message, app.status == "DEPLOY_FAILED")

    def _stop_nodes(self, known: ClusterRecord, regions: list[str]) -> None:
        from swiftclaw.cli.local import local_cluster

        local_cluster.stop_nodes(known, self.folder, [node for node in known.nodes if node.region in regions])

    def _stop_recorded(self) -> None:
        from swiftclaw.cli.local import cluster_record, local_cluster

        made = cluster_record.load(self.folder)
        if made is not None:
            local_cluster.stop(made, self.folder)


def choose(address: str | None) -> str | None:
    """The cluster to join: the one that was named, else the one that runs here; None to start one."""
    from swiftclaw.cli.local import processes

    if address == "local":
        return None
    if address and address != "auto":
        return address
    found = processes.ray_addresses()
    if len(found) > 1:
        raise CommandFailed(f"several Ray clusters run here ({', '.join(found)}): name one with --address")
    if address and not found:
        raise CommandFailed("no Ray cluster runs here that could be joined")
    return found[0] if found else None


def regions_of(settings: Settings) -> list[str]:
    """Every region that needs a Ray node; the first one is for the head: where the first gateway is."""
    named = [*(gateway.region for gateway in settings.gateways), *settings.regions]
    return list(dict.fromkeys(named))


def edges_of(settings: Settings) -> dict[tuple[str, int, str], int]:
    counted: Counter[Any] = Counter()
    for gateway in settings.gateways:
        counted[gateway.host, gateway.port, gateway.region] += gateway.replicas
    return dict(counted)
