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

from swiftclaw.cli import files, show
from swiftclaw.cli.api import Api
from swiftclaw.cli.check import absent_files, warn
from swiftclaw.cli.errors import Refused, Unreachable
from swiftclaw.cli.progress import Progress, of_controller, of_status, with_versions
from swiftclaw.cli.reporter import Reporter
from swiftclaw.cli.undo import Undo, interruptible, undoing

if TYPE_CHECKING:
    from cluster.config import Settings
    from swiftclaw.cli.record import Record

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
    from swiftclaw.cli import record
    from swiftclaw.cli.welcome import welcome

    settings = files.load(file)
    warn(absent_files(settings))
    with record.alone(Path(settings.state_dir)), interruptible(), Reporter(show.err()) as reporter:
        work = Up(settings, Path(settings.state_dir), timeout, reporter)
        with work.ray_cluster(address) as (cluster, fresh):
            work.deploy(cluster, fresh)
    welcome(settings, cluster, Api(files.url(settings.admin.host, settings.admin.port)))


@dataclass(frozen=True)
class Up:
    """One run of `up`."""

    settings: Settings
    folder: Path
    timeout_s: float
    reporter: Reporter

    @contextlib.contextmanager
    def ray_cluster(self, address: str | None) -> Iterator[tuple[Record, bool]]:
        """The Ray cluster to use, and whether it was started for this: then it is stopped again when the block fails."""
        from swiftclaw.cli import driver, local, ports, record

        known = self._known(address)
        regions = regions_of(self.settings)
        with undoing(lambda: self.reporter.say("undoing what was started")) as undo:
            if known is not None and known.started_ray:
                missing = local.missing(known, regions)
                if missing:
                    undo.by(lambda: self._stop_nodes(known, missing))
                local.add(known, self.folder, missing, self.reporter.say)
                yield known, False
                return
            joined = known.address if known else choose(address)
            if joined is not None:
                found = address in (None, "auto")
                yield known or record.Record(joined, started_ray=False, auth_mode=driver.auth_mode() if found else ""), False
                return
            ports.demand(self.settings, here=True)
            undo.by(self._stop_recorded)
            taken = {port for _, port in ports.required(self.settings)}
            yield local.start(regions, self.folder, taken, self.reporter.say), True

    def deploy(self, cluster: Record, fresh: bool) -> None:
        """Raises Refused with the reason when not everything is there in time."""
        from swiftclaw.cli import driver

        self.reporter.say(f"joining the Ray cluster at {cluster.address}")
        with (
            driver.connected(cluster.address, cluster.auth_mode),
            undoing(lambda: self.reporter.say("undoing what was changed")) as undo,
        ):
            app = driver.apps().get(driver.APP)
            if app is not None and app.status not in ("DELETING", "DEPLOY_FAILED", "NOT_STARTED"):
                changed = self._apply(undo)
            else:
                self._start(cluster, undo, fresh)
                changed = False
            self._wait(cluster, time.monotonic() + APPLIED_S if changed else 0.0)

    def _known(self, address: str | None) -> Record | None:
        """What an earlier `up` started and still runs; what is left of one that does not is stopped."""
        from swiftclaw.cli import driver, local, record

        known = record.load(self.folder)
        if known is None:
            return None
        if address not in (None, "auto", "local", known.address):
            raise Refused(
                f"SwiftClaw was started from here on the Ray cluster at {known.address}, not at {address}; "
                f"`{show.program()} down` stops it"
            )
        if known.started_ray and not local.running(known):
            local.stop(known, self.folder)
            return None
        if not known.started_ray and not driver.reachable(known.address):
            record.remove(self.folder)
            return None
        return known

    def _apply(self, undo: Undo) -> bool:
        from swiftclaw.cli import driver

        before, folder = driver.current()
        if Path(folder).resolve() != Path(self.settings.folder).resolve():
            raise Refused(f"SwiftClaw runs on this Ray cluster already, from {folder}; stop it there first")
        args = self.settings.to_args()
        changed = args != before
        if changed:
            self.reporter.say("applying what changed")
        driver.apply(args, self.settings.folder)  # also when nothing did: what could not start is tried again
        if changed:
            undo.by(lambda: driver.apply(before, folder))
        return changed

    def _start(self, cluster: Record, undo: Undo, fresh: bool) -> None:
        from swiftclaw.cli import driver, ports, record

        if not cluster.started_ray:
            if driver.is_here(cluster.address):
                ports.demand(self.settings, here=False)
            cluster.started_serve = not driver.serving()
            record.save(self.folder, cluster)
            undo.by(lambda: record.remove(self.folder))
        if not fresh:
            undo.by(lambda: driver.remove(driver.remembered(self.folder), UNDO_S, cluster.started_serve))
        self.reporter.say("deploying")
        driver.deploy(self.settings.to_args(), self.settings.folder, cluster.started_ray)

    def _wait(self, cluster: Record, not_before: float) -> None:
        from swiftclaw.cli import local

        api = Api(files.url(self.settings.admin.host, self.settings.admin.port))
        deadline = time.monotonic() + self.timeout_s
        while True:
            progress = self._progress(api)
            self.reporter.say(str(progress))
            now = time.monotonic()
            if now >= not_before and progress.failed:
                raise Refused("\n".join(progress.failed))
            if now >= not_before and progress.done:
                return
            if cluster.started_ray and not local.running(cluster):
                raise Refused(f"Ray stopped meanwhile (see {self.folder / 'logs'})")
            if now > deadline:
                raise Refused(f"after {self.timeout_s:g} s there is still missing: {'; '.join(progress.missing)}")
            time.sleep(POLL_S)

    def _progress(self, api: Api) -> Progress:
        from swiftclaw.cli import driver

        try:
            status = api.status()
            wanted = {name: agent.version for name, agent in self.settings.agents.items()}
            return with_versions(of_status(status, edges_of(self.settings), self.settings.agents), status, wanted)
        except Unreachable:
            app = driver.apps().get(driver.APP, driver.App("NOT_STARTED", ""))
            return of_controller(app.message, app.status == "DEPLOY_FAILED")

    def _stop_nodes(self, known: Record, regions: list[str]) -> None:
        from swiftclaw.cli import local

        local.stop_nodes(known, self.folder, [node for node in known.nodes if node.region in regions])

    def _stop_recorded(self) -> None:
        from swiftclaw.cli import local, record

        made = record.load(self.folder)
        if made is not None:
            local.stop(made, self.folder)


def choose(address: str | None) -> str | None:
    """The cluster to join: the one that was named, else the one that runs here; None to start one."""
    from swiftclaw.cli import processes

    if address == "local":
        return None
    if address and address != "auto":
        return address
    found = processes.ray_addresses()
    if len(found) > 1:
        raise Refused(f"several Ray clusters run here ({', '.join(found)}): name one with --address")
    if address and not found:
        raise Refused("no Ray cluster runs here that could be joined")
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
