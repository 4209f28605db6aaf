"""How does what runs become what should run? In rounds: compare desired with observed, act on the difference.

Once a second, and at once after a change. A crash between two steps is repaired by the next round, because each step is
saved before it is done, or found again among what runs. What to do is decided by pure functions
(`desired.apps.plan`, `desired.rollout`, `policies.scaling`); here are the order and the effects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from cluster.config import Settings
from cluster.desired.apps import Action, AppSpec, AppStatus, desired_apps, plan
from cluster.desired.autoscaling import Autoscaling
from cluster.desired.canary_analysis import CanaryAnalysis
from cluster.desired.desired import DesiredState
from cluster.desired.state import StateNotSaved
from cluster.fleet.crash_loops import CrashLoops
from cluster.fleet.gateways import Gateways
from cluster.fleet.registry import Registry
from cluster.instance_state import HEALTHY
from cluster.placement.capacity import Capacity, explained
from cluster.placement.serve import Placement
from cluster.transport.running_clock import running_time

log = logging.getLogger("swiftclaw.controller")

RECONCILE_EVERY_S = 1.0
CALM_S = 5.0  # how long Serve's report on its apps is reused while nothing changes: it is the most expensive part of a round
SETTLE_S = 30.0  # after a start without state: time limit for running instances and gateways to register
ROUND_S = 30.0  # how long a caller waits for one


class Reconciler:
    """`changed` is called when gateways need a new snapshot; `at` is called with the name of each failpoint."""

    def __init__(
        self,
        desired: DesiredState,
        placement: Placement,
        registry: Registry,
        gateways: Gateways,
        autoscaling: Autoscaling,
        analysis: CanaryAnalysis,
        crash_loops: CrashLoops,
        changed: Callable[[], None],
        at: Callable[[str], None],
        instance_host: str = "",
    ) -> None:
        self._desired, self._state, self._versions = desired, desired.state, desired.versions
        self._placement, self._registry, self._gateways = placement, registry, gateways
        self._autoscaling, self._analysis, self._crash_loops = autoscaling, analysis, crash_loops
        self._changed, self._at, self._instance_host = changed, at, instance_host
        self._capacity = Capacity()
        self.observed: dict[str, AppStatus] = {}
        self.problems: dict[str, str] = {}  # Serve app -> why it cannot start
        self.warnings: list[str] = []
        self._settled_at = 0.0 if self._state.instances else running_time() + SETTLE_S
        self._look_at = 0.0  # when to read Serve's report again
        self._hurry = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    # --- when there is a round ------------------------------------------------------------------------------------

    async def run_for_ever(self) -> None:
        while True:
            if self._hurry.is_set():
                self._look_at = 0.0
                self._hurry.clear()
            waiting, self._waiting = self._waiting, []
            try:
                await self.reconcile()
            except Exception:  # the next round tries again
                log.exception("a reconciliation round failed")
            for waited in waiting:
                if not waited.done():
                    waited.set_result(None)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), RECONCILE_EVERY_S)

    async def round(self) -> None:
        """Wait for a round that starts after now. Raises TimeoutError."""
        waited = asyncio.get_running_loop().create_future()
        self._waiting.append(waited)
        self._hurry.set()
        await asyncio.wait_for(waited, ROUND_S)

    def hurry(self) -> None:
        """Start the next round at once."""
        self._hurry.set()

    def wake(self) -> None:
        """Versions have changed: announce a new snapshot and start the next round at once."""
        self._desired.read()
        self._changed()
        self._hurry.set()

    def try_again(self) -> None:
        """Have the next round start the apps again that could not start, or delete them if they are no longer desired."""
        for app, report in self.observed.items():
            if report.status == "DEPLOY_FAILED":
                self._mark_unfinished(app)
        self._desired.save()
        self.problems.clear()

    # --- after a start --------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether a snapshot would be right: not while a Controller without state still restores what was desired."""
        return not self._desired.lost and self._settled()

    def _settled(self) -> bool:
        """False while a Controller without state waits for what runs to register, so that no gateway gets an empty snapshot."""
        if running_time() >= self._settled_at:
            return True
        gateways = any(name.startswith("gateway.") and app.status == "RUNNING" for name, app in self.observed.items())
        if gateways and not self._gateways.present:
            return False
        running = {name for name, app in self.observed.items() if app.status == "RUNNING"}
        mine = {name for name in running if not name.startswith("gateway.") and name != "swiftclaw"}
        if self.observed and mine <= self._healthy_apps():
            self._settled_at = 0.0
        return not self._settled_at

    # --- a round --------------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        (look_at, self._look_at), now = (self._look_at, 0.0), time.monotonic()
        if now >= look_at:
            self.observed, look_at = await self._placement.running(), now + CALM_S
        settled = self._settled()
        if self._desired.rebuild(self._gateways.newest_desired(), last=settled):
            self.wake()
        if not settled:
            return
        changes = self._autoscaling.look(self._desired.file, running_time(), time.time())
        self._desired.scaled(changes)
        if changes:
            self._changed()
        labelled = await self._placement.labelled()
        await self._versions.freeze()
        desired = self._apps(labelled)
        if self._versions.advance(desired, self._registry, self.observed, self.problems) | self._analyse():
            self.wake()
            desired = self._apps(labelled)
        self._crash_loops.keep({name: spec.replicas for name, spec in desired.items() if not self._gave_up(name)})
        self.warnings = [
            *_about_regions(self._desired.settings, labelled),
            *await self._missing_capacity(desired.values()),
            *self._crash_loops.warnings(time.monotonic()),
            *self._versions.warnings(),
            *self._desired.warnings(),
        ]
        running = {name: app.status for name, app in self.observed.items()}
        self._record_running(desired.keys() & running.keys(), desired)
        actions = plan(desired, self._state.apps, running, self._healthy_apps())
        await self._do(actions, running)
        for app in [app for app in self._state.apps if app not in desired and app not in running]:
            del self._state.apps[app]
        self._versions.tidy(self._state.apps.values())
        self._gateways.forget_silent()
        if not actions and set(running.values()) <= {"RUNNING"}:
            self._look_at = look_at

    def _apps(self, labelled: set[str]) -> dict[str, AppSpec]:
        settings = self._desired.settings
        return desired_apps(settings, labelled, self._instance_host, self._versions.deployed(settings))

    def _healthy_apps(self) -> set[str]:
        """Apps with at least one healthy instance."""
        return {record.registration.app for record in self._registry if record.state == HEALTHY}

    def _gave_up(self, app: str) -> bool:
        """Whether Serve starts no more replicas of the app: its first ones could not start."""
        return app in self.observed and self.observed[app].status == "DEPLOY_FAILED"

    def _analyse(self) -> bool:
        """Advance or roll back canaries by their analysis; whether one changed."""
        steps = self._analysis.look(self._desired.file, self._versions.rollouts, time.monotonic())
        changed = False
        for step in steps:
            with contextlib.suppress(StateNotSaved):  # decided again when it can be saved
                if step.percent is None:
                    self._versions.take_back(step.agent, step.reason)
                else:
                    self._versions.promote(step.agent, step.percent, step.reason)
                changed = True
        return changed

    async def _missing_capacity(self, specs: Iterable[AppSpec]) -> list[str]:
        short = self._capacity.short(specs, self._registry, time.monotonic(), self._crash_loops.starting)
        nodes = await self._placement.nodes() if short else []
        return [warning for spec, missing in short if (warning := explained(spec, missing, nodes))]

    def _record_running(self, names: Iterable[str], desired: Mapping[str, AppSpec]) -> None:
        """Record apps that run as desired but are not in the state: the state file was lost."""
        for name in names:
            if name not in self._state.apps and self.observed[name].status != "DEPLOY_FAILED":
                self._state.apps[name] = desired[name].record()

    async def _do(self, actions: list[Action], running: Mapping[str, str]) -> None:
        starts = [action.spec for action in actions if action.do == "start" and action.spec]
        for action in actions:
            if action.do == "start" and action.spec:
                record = action.spec.record()  # a running app is replaced again, should this get no further
                self._state.apps[action.app] = record.unfinished() if action.app in running else record
            self.problems.pop(action.app, None)
        self._desired.save()
        if starts:
            self._at("start.before")
            await self._start(starts)
            self._at("start.after")
        for action in actions:
            if action.do == "scale" and action.spec:
                await self._placement.scale(action.spec)
                self._state.apps[action.app] = action.spec.record()  # not before: the next round tries again
                self._desired.save()
            elif action.do == "delete":
                await self._delete(action.app)

    async def _start(self, specs: list[AppSpec]) -> None:
        try:
            await self._placement.start(specs)
        except Exception:
            for spec in specs:  # it does not run after all: the next round tries again
                self._mark_unfinished(spec.name)
            raise
        for spec in specs:
            self._state.apps[spec.name] = spec.record()
        self._desired.save()

    def _mark_unfinished(self, app: str) -> None:
        if app in self._state.apps:
            self._state.apps[app] = self._state.apps[app].unfinished()

    async def _delete(self, app: str) -> None:
        for record in self._registry:
            if record.registration.app == app:
                self._registry.drain(record.registration.replica, "no longer needed")
        self._at("delete.before")
        await self._placement.delete(app, self._ever_registered())
        self._at("delete.after")

    # --- the end --------------------------------------------------------------------------------------------------

    async def take_down(self, apps: Iterable[str]) -> None:
        """Delete these apps, whatever is desired; only when no more rounds run."""
        for name in apps:
            await self._placement.delete(name, self._ever_registered())
            del self._state.apps[name]
        self._desired.save()

    def _ever_registered(self) -> set[str]:
        """Replicas that have run; any other replica of a deleted app has no requests to finish."""
        return {*self._registry.ever_registered(), *self._gateways.present}


def _about_regions(settings: Settings, labelled: set[str]) -> list[str]:
    wanted = set(settings.regions)
    if not labelled and len(wanted) > 1:
        return ["no Ray node carries a `region` label: regions are logical only, and instances run on any node"]
    missing = sorted(wanted - labelled) if labelled else []
    return [f"no Ray node carries the label region={region}: no instance can run there" for region in missing]
