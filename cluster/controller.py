"""The Controller: what should run, what does run, and what gateways are told of it.

One replica of the Serve app `swiftclaw`. It reconciles (compares desired with observed and acts on the difference), so a
crash between two steps is repaired by the next round. Nothing on the request path waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import ray

from cluster.admin import Admin
from cluster.agent_settings import HealthCheck
from cluster.checks import Checks
from cluster.config import Settings, parse
from cluster.health import Watch
from cluster.listener import Listener, PortInUse, bind
from cluster.messages import Admission, Hello, Observation, Registration, Snapshot
from cluster.metrics import Key, Ledger
from cluster.placement import AppSpec, AppStatus, Placement, desired_apps, plan
from cluster.registry import Record, Registry
from cluster.state import State, Store

log = logging.getLogger("swiftclaw.controller")

RECONCILE_EVERY_S = 1.0
POLL_S = 10.0  # a gateway's request for news is answered after this long even without any
SETTLE_S = 6.0  # after a start without state: how long instances that run already have to present themselves
GATEWAY_GONE_S = 3 * POLL_S


class Controller:
    """Methods are called by instances, gateways and the command line through a Serve handle."""

    def __init__(self, args: dict[str, Any], folder: str, placement: Placement, instance_host: str = "") -> None:
        self._placement, self._instance_host = placement, instance_host
        self._store = Store(Path(parse(args, Path(folder)).state_dir))
        self._state = self._recover(args, folder)
        self.settings = parse(self._state.args, Path(self._state.folder))
        self._key = self._store.key()
        self._session_keys = self._store.session_keys()
        self._epoch = secrets.token_hex(4)
        self._revision = 0
        self._news = asyncio.Condition()
        self._hurry = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.registry = Registry(self._changed)
        self.registry.restore(self._state.instances)
        self.ledger = Ledger()
        self.gateways: dict[str, tuple[Hello, float, str | None]] = {}  # heard when, having seen which version
        self.problems: dict[str, str] = {}  # Serve app -> why it cannot start
        self.warnings: list[str] = []
        self.observed: dict[str, AppStatus] = {}
        self._watch = Watch(self.registry, self._key)
        self._checks = Checks(self.registry, self._key, self._health_check_of, Random())
        self._settled_at = 0.0 if self._state.instances else time.monotonic() + SETTLE_S
        self._admin: Listener | None = None

    async def start(self) -> None:
        """Open the admin port and begin to reconcile. Raises PortInUse."""
        self._admin = await self._open_admin()
        for record in self.registry:
            self._attend(record)
        self._spawn(self._reconcile_for_ever())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._watch.close()
        await self._checks.close()
        if self._admin is not None:
            await self._admin.close()

    # --- what instances and gateways call -------------------------------------------------------------------------

    async def register(self, new: Registration) -> Admission:
        """An instance presents itself; its peers are asked first, so that a dead one's name is free again."""
        known = self.registry.get(new.replica)
        if known is None:
            await asyncio.gather(*(self._watch.verify(peer) for peer in self.registry.of(new.agent)))
        record = self.registry.admit(new)
        self.problems.pop(new.app, None)
        self._attend(record)
        return Admission(record.id, self._key)

    async def leaving(self, replica: str) -> None:
        """An instance is about to stop: it gets nothing new."""
        self.registry.drain(replica, "stopping")

    async def cannot_start(self, app: str, reason: str) -> None:
        """A replica of `app` gave up while starting."""
        self.problems[app] = reason
        log.error("%s cannot start: %s", app, reason)

    async def news(self, hello: Hello, seen: str | None) -> Snapshot | None:
        """The newest snapshot as soon as it differs from the one the gateway has; None when nothing is new."""
        self.gateways[hello.gateway] = (hello, time.monotonic(), seen)
        self.problems.pop(hello.app, None)
        deadline = time.monotonic() + POLL_S
        async with self._news:
            while not self._settled() or seen == self._version():
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self._news.wait(), min(left, 0.5) if not self._settled() else left)
                except asyncio.TimeoutError:
                    continue
        return self.registry.view(self.settings, self._version(), self._key, self._session_keys)

    async def observe(self, seen: Observation) -> None:
        """What a gateway saw since its last observation."""
        self.ledger.add(seen, time.monotonic())
        for _, replica in seen.unreachable:
            record = self.registry.get(replica)
            if record is not None:
                self._spawn(self._watch.verify(record))

    async def goodbye(self, gateway: str) -> None:
        self._forget_gateway(gateway)

    # --- what the command line calls ------------------------------------------------------------------------------

    async def apply(self, args: dict[str, Any], folder: str) -> None:
        """The new desired state. Returns when it is remembered and a round of reconciling has begun to act on it.

        What could not start is tried again.
        """
        settings = parse(args, Path(folder))
        if settings.admin != self.settings.admin:
            raise ValueError("admin: cannot change while SwiftClaw runs; use `swiftclaw down` first")
        self._state.args, self._state.folder, self.settings = args, folder, settings
        for app, seen in self.observed.items():
            if seen.status == "DEPLOY_FAILED":
                self._state.apps.get(app, {})["identity"] = ""  # started again if it is still wanted, else deleted
        self._remember()
        self.problems.clear()
        self._changed()
        await asyncio.wait_for(self._round(), 30)

    async def current(self) -> tuple[dict[str, Any], str]:
        """(args, folder) as they are desired now."""
        return self._state.args, self._state.folder

    async def rotate_session_key(self) -> None:
        """Sign session tokens with a new key; those signed with the one before stay valid."""
        self._session_keys = self._store.rotate_session_key(self._session_keys)
        self._changed()

    async def stop_apps(self) -> list[str]:
        """Delete every app that was started; what remains is the Controller itself. Their names."""
        self._state.args = {**self._state.args, "agents": {}}
        self._state.started_with = ""  # started again, the args win
        names = list(self._state.apps)
        for task in self._tasks:
            task.cancel()
        for name in names:
            await self._placement.delete(name)
        self._state.apps.clear()
        self._remember()
        return names

    # --- what is shown --------------------------------------------------------------------------------------------

    def is_current(self, gateway: str) -> bool:
        """Whether it has the newest snapshot: then it acts on all that is shown here."""
        return self.gateways[gateway][2] == self._version()

    def rows(self) -> Iterable[tuple[Key, str, bool, float | None]]:
        for record in self.registry:
            yield record.key, record.state, record.state == "healthy", record.cpu_percent

    def desired(self) -> Iterable[tuple[str, str, str, int]]:
        for agent in self.settings.agents.values():
            for region, wanted in agent.regions.items():
                yield agent.name, agent.version, region, wanted.instances

    # --- inside ---------------------------------------------------------------------------------------------------

    def _recover(self, args: dict[str, Any], folder: str) -> State:
        """The remembered state if it is of this Ray cluster; the args win when they are not those of last time."""
        digest = hashlib.sha256(json.dumps([args, folder], sort_keys=True).encode()).hexdigest()
        cluster = ray.get_runtime_context().get_node_id()
        state = self._store.load()
        if state is None or state.ray_cluster != cluster:
            state = State(ray_cluster=cluster)
        if state.started_with != digest:
            state.args, state.folder, state.started_with = args, folder, digest
        self._store.save(state)
        return state

    async def _open_admin(self) -> Listener:
        address = self.settings.admin
        for attempt in range(20):  # the port of a Controller that was just killed may need a moment
            try:
                listener = Listener(Admin(self).app(), bind(address.host, address.port))
                break
            except PortInUse:
                if attempt == 19:
                    raise
                await asyncio.sleep(0.25)
        await listener.start()
        return listener

    def _attend(self, record: Record) -> None:
        self._watch.attend(record)
        self._checks.attend(record)

    def _health_check_of(self, agent: str) -> HealthCheck | None:
        settings = self.settings.agents.get(agent)
        return settings.health_check if settings else None

    def _version(self) -> str:
        return f"{self._epoch}.{self._revision}"

    def _settled(self) -> bool:
        """False while a Controller without state waits for what runs, so that no gateway is told of an empty world."""
        if time.monotonic() >= self._settled_at:
            return True
        known = {name for name, app in self.observed.items() if app.status == "RUNNING"}
        present = {record.registration.app for record in self.registry if record.state == "healthy"}
        mine = {name for name in known if not name.startswith("gateway.") and name != "swiftclaw"}
        return bool(self.observed) and mine <= present

    def _changed(self) -> None:
        self._revision += 1
        self._state.instances = self.registry.dump()
        self._remember()
        self._spawn(self._announce())

    async def _announce(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _remember(self) -> None:
        self._store.save(self._state)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _round(self) -> None:
        """Wait for a round that begins after now."""
        waited = asyncio.get_running_loop().create_future()
        self._waiting.append(waited)
        self._hurry.set()
        await waited

    async def _reconcile_for_ever(self) -> None:
        while True:
            self._hurry.clear()
            waiting, self._waiting = self._waiting, []
            try:
                await self._reconcile()
            except Exception:  # the next round tries again
                log.exception("a round of reconciling failed")
            for waited in waiting:
                if not waited.done():
                    waited.set_result(None)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), RECONCILE_EVERY_S)

    async def _reconcile(self) -> None:
        self.observed = await self._placement.running()
        labelled = await self._placement.labelled()
        desired = desired_apps(self.settings, labelled, self._instance_host)
        self.warnings = [*_about_regions(self.settings, labelled), *_about_agents(self.registry)]
        running = {name: app.status for name, app in self.observed.items()}
        self._adopt(desired.keys() & running.keys(), desired)
        well = {record.registration.app for record in self.registry if record.state == "healthy"}
        actions = plan(desired, self._state.apps, running, well)
        starts = [action.spec for action in actions if action.do == "start" and action.spec]
        for action in actions:
            if action.do == "start" and action.spec:
                self._state.apps[action.app] = action.spec.remembered()
            self.problems.pop(action.app, None)
        self._remember()
        if starts:
            await self._start(starts)
        for action in actions:
            if action.do == "scale" and action.spec:
                await self._placement.scale(action.spec)
                self._state.apps[action.app] = action.spec.remembered()  # not before: the next round tries again
                self._remember()
            elif action.do == "delete":
                await self._delete(action.app)
        for app in [app for app in self._state.apps if app not in desired and app not in running]:
            del self._state.apps[app]
        self._forget_silent_gateways()

    async def _start(self, specs: list[AppSpec]) -> None:
        try:
            await self._placement.start(specs)
        except Exception:
            for spec in specs:  # not what runs, after all: the next round tries again
                self._state.apps[spec.name]["identity"] = ""
            raise

    def _adopt(self, names: Iterable[str], desired: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self._state.apps and self.observed[name].status != "DEPLOY_FAILED":
                self._state.apps[name] = desired[name].remembered()

    async def _delete(self, app: str) -> None:
        for record in self.registry:
            if record.registration.app == app:
                self.registry.drain(record.registration.replica, "no longer wanted")
        await self._placement.delete(app)

    def _forget_silent_gateways(self) -> None:
        for gateway, (_, heard, _) in list(self.gateways.items()):
            if time.monotonic() - heard > GATEWAY_GONE_S:
                self._forget_gateway(gateway)

    def _forget_gateway(self, gateway: str) -> None:
        self.gateways.pop(gateway, None)
        self.ledger.forget_gateway(gateway)


def _about_agents(registry: Registry) -> list[str]:
    names = sorted({record.registration.agent for record in registry if record.registration.rate_limited})
    return [f"{name}: @agent.rate_limit: this version does not act on it yet" for name in names]


def _about_regions(settings: Settings, labelled: set[str]) -> list[str]:
    wanted = set(settings.regions)
    if not labelled and len(wanted) > 1:
        return ["no Ray node carries a `region` label: the regions are logical, instances run on any node"]
    missing = sorted(wanted - labelled) if labelled else []
    return [f"no Ray node carries the label region={region}: nothing can run there" for region in missing]
