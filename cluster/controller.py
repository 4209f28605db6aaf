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
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import ray

from cluster.admin import Admin
from cluster.agent_settings import HealthCheck
from cluster.analysis import Analysis
from cluster.autoscaling import Autoscaling, Change, with_counts
from cluster.capacity import Capacity, explained
from cluster.checks import Checks
from cluster.circuits import SharedCircuits
from cluster.config import Settings, parse
from cluster.control import ControlAddress, ControlPort
from cluster.events import Events
from cluster.exposition import InstanceRow
from cluster.health import Watch
from cluster.history import History
from cluster.ledger import Ledger
from cluster.listener import Listener, PortInUse, bind
from cluster.messages import Admission, Hello, Observation, Peer, Registration, Snapshot
from cluster.packages import Package, Packages
from cluster.placement import AppSpec, AppStatus, Placement, desired_apps, plan
from cluster.points import StopAt
from cluster.recording import record_for_ever
from cluster.registry import Record, Registry
from cluster.rollouts import Refused, instances_for
from cluster.state import State, Store
from cluster.take_away import TakeAway
from cluster.versions import Versions, Wish
from cluster.witness import Witness
from policies.draining import DrainTerms

log = logging.getLogger("swiftclaw.controller")

RECONCILE_EVERY_S = 1.0
POLL_S = 10.0  # a gateway's request for news is answered after this long even without any
SETTLE_S = 30.0  # after a start without state: how long what runs already has to present itself, at most
GATEWAY_GONE_S = 3 * POLL_S


class Controller:
    """Methods are called by instances and gateways through its control port, by the command line through a Serve handle."""

    def __init__(self, args: dict[str, Any], folder: str, placement: Placement, instance_host: str = "") -> None:
        self._placement, self._instance_host = placement, instance_host
        state_dir = Path(parse(args, Path(folder)).state_dir)
        self._store, self._at = Store(state_dir), StopAt(state_dir)
        self._state = self._recover()
        self.versions = Versions(self._state, Packages(state_dir / "packages"), self._remember, self._tell_of_rollout, self._at)
        self._lost = not self._state.started_with  # no state, or that of another cluster
        self._start_with(args, folder)
        self._file = self.versions.settings()  # with the versions of now
        self.settings = with_counts(self._file, self._state.counts)  # with the number of instances of now
        self._key = self._store.key()
        self._control = ControlPort(self, self._key)
        self._session_keys = self._store.session_keys()
        self._epoch = secrets.token_hex(4)
        self._revision = 0
        self._news = asyncio.Condition()
        self._hurry = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.events = Events()
        self.registry = Registry(self._changed)
        self.registry.restore(self._state.instances)
        self.witness = Witness(self.events, self.registry)
        self.circuits = SharedCircuits()
        self.autoscaling = Autoscaling(self.registry, self._state.counts)
        self._capacity = Capacity()
        self.ledger = Ledger()
        self.analysis = Analysis(self.ledger)
        self.history = History()
        self.gateways: dict[str, tuple[Hello, float, str | None]] = {}  # heard when, having seen which version
        self.problems: dict[str, str] = {}  # Serve app -> why it cannot start
        self.warnings: list[str] = []
        self.observed: dict[str, AppStatus] = {}
        self._watch = Watch(self.registry, self._key)
        self._take_away = TakeAway(self.registry, self._key)
        self._checks = Checks(self.registry, self._key, self._health_check_of, Random())
        self._settled_at = 0.0 if self._state.instances else time.monotonic() + SETTLE_S
        self._admin: Listener | None = None
        self._down_within_s: float | None = None  # set by `down`: how long requests in flight may take

    async def start(self) -> None:
        """Open the admin port and begin to reconcile. Raises PortInUse."""
        self._admin = await self._open_admin()
        await self._control.open(self._instance_host or ray.util.get_node_ip_address())
        for record in self.registry:
            self._attend(record)
        self._spawn(self._reconcile_for_ever())
        self._spawn(record_for_ever(self))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._watch.close()
        await self._checks.close()
        await self._control.close()
        if self._admin is not None:
            await self._admin.close()

    # --- what instances and gateways call (by cluster/control.py) -------------------------------------------------

    async def control(self) -> ControlAddress:
        """Where they call: the only thing that they ask for by a handle."""
        while not self._control.address.port:
            await asyncio.sleep(0.05)
        return self._control.address

    async def register(self, new: Registration) -> Admission:
        """An instance presents itself; its peers are asked first, so that a dead one's name is free again."""
        known = self.registry.get(new.replica)
        if known is None:
            await asyncio.gather(*(self._watch.verify(peer) for peer in self.registry.of(new.agent)))
        record = self.registry.admit(new)
        self.problems.pop(new.app, None)
        self._attend(record)
        wants_code = bool(new.package) and not self.versions.packages.has(new.package)
        return Admission(record.id, self._key, self._drain_terms(new.agent) or DrainTerms(), wants_code)

    async def leaving(self, replica: str, agent: str) -> DrainTerms | None:
        """An instance is about to stop: it gets nothing new. None: its agent is gone, and nobody waits for sessions."""
        self.registry.drain(replica, "stopping")
        return self._drain_terms(agent)

    async def cannot_start(self, app: str, reason: str) -> None:
        """A replica of `app` gave up while starting."""
        self.problems[app] = reason
        log.error("%s cannot start: %s", app, reason)

    async def news(self, hello: Hello, seen: str | None) -> Snapshot | None:
        """The newest snapshot as soon as it differs from the one the gateway has; None when nothing is new."""
        new = hello.gateway not in self.gateways
        self.gateways[hello.gateway] = (hello, time.monotonic(), seen)
        if new:
            self.witness.gateway(hello)
            self._changed()
        self.problems.pop(hello.app, None)
        deadline = time.monotonic() + POLL_S
        async with self._news:
            while not self._knows() or seen == self._version():
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self._news.wait(), left if self._knows() else min(left, 0.5))
                except asyncio.TimeoutError:
                    continue
        view = self.registry.view(self.settings, self._version(), self._key, self._session_keys, self.versions.shares())
        hellos = [known for known, _, _ in self.gateways.values()]
        peers = tuple(Peer(known.gateway, known.host, known.port) for known in hellos if known.port)
        return replace(view, peers=peers, circuits=self.circuits.to_tell(time.monotonic()), desired=self.versions.to_keep())

    async def observe(self, seen: Observation) -> None:
        """What a gateway saw since its last observation."""
        self.ledger.add(seen, time.monotonic())
        self.autoscaling.heard(seen, time.monotonic())
        self._hear_of_circuits(seen)
        for _, replica in seen.unreachable:
            record = self.registry.get(replica)
            if record is not None:
                self._spawn(self._watch.verify(record))

    async def goodbye(self, gateway: str) -> None:
        self._forget_gateway(gateway, "it was told to stop")

    # --- what the command line calls ------------------------------------------------------------------------------

    async def apply(self, args: dict[str, Any], folder: str) -> None:
        """The new desired state. Returns when it is remembered and a round of reconciling has begun to act on it.

        What could not start is tried again.
        """
        if parse(args, Path(folder)).admin != self.settings.admin:
            raise ValueError("admin: cannot change while SwiftClaw runs; use `swiftclaw down` first")
        settings = self.versions.hear(args, folder)
        self.witness.applied(self._file, settings)
        self._file, self.settings = settings, with_counts(settings, self._state.counts)
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

    async def deploy(self, agent: str, wish: Wish) -> tuple[str, str]:
        """For `swiftclaw deploy`: (what is done about it, the version). Raises ValueError with a sentence."""
        taken = {known["version"] for known in self._state.apps.values() if known["agent"] == agent}
        taken |= {record.registration.version for record in self.registry.of(agent)}
        done = self.versions.deploy(agent, wish, sorted(taken))
        self._act()
        return done

    async def promote(self, agent: str, percent: float) -> str:
        """The version that is to get that share. Raises ValueError with a sentence."""
        return self._acted(self.versions.promote(agent, percent))

    async def pause(self, agent: str, paused: bool) -> str:
        """The version whose analysis pauses or goes on. Raises ValueError with a sentence."""
        return self._acted(self.versions.pause(agent, paused))

    async def rollback(self, agent: str) -> str:
        """The version that goes. Raises ValueError with a sentence."""
        return self._acted(self.versions.take_back(agent, "by an operator"))

    async def has_package(self, digest: str) -> bool:
        return self.versions.packages.has(digest)

    async def take_package(self, digest: str, content: bytes) -> None:
        """From whoever deploys, or from an instance that runs it when the state folder was lost."""
        await asyncio.to_thread(self.versions.packages.put, Package(digest, content))

    async def package(self, digest: str) -> bytes | None:
        """For instances that are to run it."""
        return await asyncio.to_thread(self.versions.packages.get, digest)

    def _acted(self, version: str) -> str:
        self._act()
        return version

    def _act(self) -> None:
        self._file = self.versions.settings()
        self.settings = with_counts(self._file, self._state.counts)
        self._changed()
        self._hurry.set()

    async def rotate_session_key(self) -> None:
        """Sign session tokens with a new key; those signed with the one before stay valid."""
        self._session_keys = self._store.rotate_session_key(self._session_keys)
        self._changed()

    async def scale(self, agent: str, region: str | None, instances: int) -> str:
        """For `swiftclaw scale`. What was changed, as a sentence. Raises ValueError where the bounds forbid it."""
        change = self.autoscaling.fix(self._file, agent, region, instances, time.time())
        self._scaled([change])
        await asyncio.wait_for(self._round(), 30)
        return str(change)

    async def take_away(self, agent: str, instance: str, mode: str, seconds: float) -> None:
        """For `swiftclaw test failover`: see cluster/take_away.py. Raises ValueError when it cannot be done."""
        await self._take_away.take(agent, instance, mode, seconds)
        said = f"`swiftclaw test failover` takes {instance} away: {mode}" if seconds else f"{instance} is no longer taken out"
        self.events.add("instance", said, agent=agent, instance=instance, mode=mode, seconds=seconds)

    async def stop_gateways(self) -> list[str]:
        """The first half of `down`: no new connections, and what runs goes on. The apps that will be gone then."""
        return await self._stop([name for name, known in self._state.apps.items() if not known["agent"]])

    async def stop_apps(self, within_s: float) -> list[str]:
        """Delete every app that was started; what remains is the Controller itself. Their names.

        What is in flight is cut off after `within_s`; nobody waits for sessions.
        """
        self._down_within_s = within_s
        return await self._stop(list(self._state.apps))

    async def in_flight(self) -> dict[str, int]:
        """Agent -> requests that its instances work on."""
        counts: dict[str, int] = {}
        for record in self.registry:
            agent = record.registration.agent
            counts[agent] = counts.get(agent, 0) + record.in_flight
        return counts

    # --- what is shown --------------------------------------------------------------------------------------------

    def is_current(self, gateway: str) -> bool:
        """Whether it has the newest snapshot: then it acts on all that is shown here."""
        return self.gateways[gateway][2] == self._version()

    def agents(self) -> Iterable[str]:
        return self.settings.agents

    def rows(self) -> Iterable[InstanceRow]:
        now = time.monotonic()
        for record in self.registry:
            circuit = self.circuits.state(record.registration.replica, now)
            yield InstanceRow(record.key, record.state, record.cpu_percent, circuit)

    def weights(self) -> Iterable[tuple[str, str, float]]:
        """(agent, version, percent of the traffic)."""
        for agent, share in self.versions.shares().items():
            yield agent, share.stable, 100 - share.percent
            if share.canary:
                yield agent, share.canary, share.percent

    def desired(self) -> Iterable[tuple[str, str, str, int]]:
        for agent, deployed in self.versions.deployed(self.settings).items():
            for one in deployed:
                for region, wanted in self.settings.agents[agent].regions.items():
                    yield agent, one.settings.version, region, instances_for(one.percent, wanted.instances)

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _stop(self, apps: list[str]) -> list[str]:
        self.versions.forget_all()
        self._state.started_with = ""  # started again, the args win
        self._state.counts.clear()
        for task in self._tasks:
            task.cancel()
        for name in apps:
            await self._placement.delete(name, self._met())
            del self._state.apps[name]
        self._remember()
        return apps

    def _drain_terms(self, agent: str) -> DrainTerms | None:
        settings = self.settings.agents.get(agent)
        if settings is None:
            return None
        within_s = self._down_within_s
        if within_s is not None:
            return DrainTerms(settings.request_timeout_s, min(within_s, settings.drain_timeout_s), keep_sessions=False)
        return DrainTerms(settings.request_timeout_s, settings.drain_timeout_s, self.registry.keeps_sessions(settings))

    def _recover(self) -> State:
        """The remembered state if it is of this Ray cluster."""
        cluster = ray.get_runtime_context().get_node_id()
        state = self._store.load()
        return state if state is not None and state.ray_cluster == cluster else State(ray_cluster=cluster)

    def _start_with(self, args: dict[str, Any], folder: str) -> None:
        """The args win over the remembered ones when they are not those of last time."""
        digest = hashlib.sha256(json.dumps([args, folder], sort_keys=True).encode()).hexdigest()
        if self._state.started_with != digest:
            try:
                self.versions.hear(args, folder)
            except Refused as error:
                log.error("the settings stay as they were: %s", error)
            self._state.started_with = digest
        self._remember()

    async def _open_admin(self) -> Listener:
        address = self.settings.admin
        for attempt in range(20):  # the port of a Controller that was just killed may need a moment
            try:
                listener = Listener(Admin(self).app(), bind(address.host, address.port), grace_s=1)
                break
            except PortInUse:
                if attempt == 19:
                    raise
                await asyncio.sleep(0.25)
        await listener.start()
        return listener

    def _hear_of_circuits(self, seen: Observation) -> None:
        """What one gateway has found out reaches the others with the next snapshot."""
        present = {replica: record for _, replica in seen.circuits if (record := self.registry.get(replica)) is not None}
        told = {replica: news for (_, replica), news in seen.circuits.items() if replica in present}
        for replica, (_, state) in self.circuits.hear(seen.gateway, told, time.monotonic()).items():
            self.witness.circuit(present[replica], state)
        if any(news.state != "half-open" for news in told.values()):  # probing is one gateway's own affair
            self._changed()

    def _tell_of_rollout(self, agent: str, version: str, message: str) -> None:
        log.info("%s", message)
        self.events.add("rollout", message, agent=agent, version=version)

    def _attend(self, record: Record) -> None:
        self._watch.attend(record)
        self._checks.attend(record)

    def _health_check_of(self, agent: str) -> HealthCheck | None:
        settings = self.settings.agents.get(agent)
        return settings.health_check if settings else None

    def _version(self) -> str:
        return f"{self._epoch}.{self._revision}"

    def _knows(self) -> bool:
        """Whether what it would tell is right: before, it has to have found out what was desired."""
        return not self._lost and self._settled()

    def _settled(self) -> bool:
        """False while a Controller without state waits for what runs, so that no gateway is told of an empty world."""
        if time.monotonic() >= self._settled_at:
            return True
        gateways = any(name.startswith("gateway.") and app.status == "RUNNING" for name, app in self.observed.items())
        if gateways and not self.gateways:
            return False
        known = {name for name, app in self.observed.items() if app.status == "RUNNING"}
        present = {record.registration.app for record in self.registry if record.state == "healthy"}
        mine = {name for name in known if not name.startswith("gateway.") and name != "swiftclaw"}
        if self.observed and mine <= present:
            self._settled_at = 0.0
        return not self._settled_at

    def _changed(self) -> None:
        self._revision += 1
        self.circuits.keep({record.registration.replica for record in self.registry})
        self._state.instances = self.registry.dump()
        self._remember()
        self.witness.instances(self.registry)
        self.witness.levels(self.settings, self.registry)
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

    def _scaled(self, changes: list[Change]) -> None:
        """The counts have changed: remembered before anything acts on it."""
        self.settings = with_counts(self._file, self._state.counts)
        self._remember()
        for change in changes:
            log.info("%s", change)
            self.events.add(
                "scale", str(change), agent=change.agent, version=change.version, region=change.region,
                before=change.before, after=change.after, reason=change.reason,
            )  # fmt: skip

    async def _missing_capacity(self, specs: Iterable[AppSpec]) -> list[str]:
        short = self._capacity.short(specs, self.registry, time.monotonic())
        nodes = await self._placement.nodes() if short else []
        return [said for spec, missing in short if (said := explained(spec, missing, nodes))]

    async def _reconcile(self) -> None:
        self.observed = await self._placement.running()
        if not self._settled():
            return
        self._rebuild()
        self._scaled(self.autoscaling.look(self._file, time.monotonic(), time.time()))
        labelled = await self._placement.labelled()
        await self.versions.freeze()
        desired = self._desired_apps(labelled)
        if self.versions.advance(desired, self.registry, self.observed, self.problems) | self._analyse():
            self._act()
            desired = self._desired_apps(labelled)
        self.warnings = [*_about_regions(self.settings, labelled), *await self._missing_capacity(desired.values())]
        self.warnings += self.versions.warnings()
        running = {name: app.status for name, app in self.observed.items()}
        self._adopt(desired.keys() & running.keys(), desired)
        well = {record.registration.app for record in self.registry if record.state == "healthy"}
        actions = plan(desired, self._state.apps, running, well)
        starts = [action.spec for action in actions if action.do == "start" and action.spec]
        for action in actions:
            if action.do == "start" and action.spec:
                unfinished = {"identity": ""} if action.app in running else {}  # replaced again, should this get no further
                self._state.apps[action.app] = action.spec.remembered() | unfinished
            self.problems.pop(action.app, None)
        self._remember()
        if starts:
            self._at("start.before")
            await self._start(starts)
            self._at("start.after")
        for action in actions:
            if action.do == "scale" and action.spec:
                await self._placement.scale(action.spec)
                self._state.apps[action.app] = action.spec.remembered()  # not before: the next round tries again
                self._remember()
            elif action.do == "delete":
                await self._delete(action.app)
        for app in [app for app in self._state.apps if app not in desired and app not in running]:
            del self._state.apps[app]
        self.versions.tidy(self._state.apps)
        self._forget_silent_gateways()

    def _analyse(self) -> bool:
        """Whether a canary got more, or was rolled back."""
        steps = self.analysis.look(self._file, self.versions.rollouts, time.monotonic())
        for step in steps:
            if step.percent is None:
                self.versions.take_back(step.agent, step.reason)
            else:
                self.versions.promote(step.agent, step.percent, step.reason)
        return bool(steps)

    def _desired_apps(self, labelled: set[str]) -> dict[str, AppSpec]:
        return desired_apps(self.settings, labelled, self._instance_host, self.versions.deployed(self.settings))

    def _rebuild(self) -> None:
        """The state was lost: what the gateways were told last is what was desired."""
        lost, self._lost = self._lost, False
        told = [(seen or "", hello.desired) for hello, _, seen in self.gateways.values() if hello.desired]
        if lost and told:
            self.versions.restore(max(told, key=lambda one: _revision(one[0]))[1], self._state.started_with)
            self._act()

    async def _start(self, specs: list[AppSpec]) -> None:
        try:
            await self._placement.start(specs)
        except Exception:
            for spec in specs:  # not what runs, after all: the next round tries again
                self._state.apps[spec.name]["identity"] = ""
            raise
        for spec in specs:
            self._state.apps[spec.name] = spec.remembered()
        self._remember()

    def _adopt(self, names: Iterable[str], desired: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self._state.apps and self.observed[name].status != "DEPLOY_FAILED":
                self._state.apps[name] = desired[name].remembered()

    async def _delete(self, app: str) -> None:
        for record in self.registry:
            if record.registration.app == app:
                self.registry.drain(record.registration.replica, "no longer wanted")
        self._at("delete.before")
        await self._placement.delete(app, self._met())
        self._at("delete.after")

    def _met(self) -> set[str]:
        """Replicas that have run; others of a deleted app have nothing to finish."""
        return {*self.registry.met(), *self.gateways}

    def _forget_silent_gateways(self) -> None:
        for gateway, (_, heard, _) in list(self.gateways.items()):
            if time.monotonic() - heard > GATEWAY_GONE_S:
                self._forget_gateway(gateway, f"nothing was heard of it for {GATEWAY_GONE_S:g} s")

    def _forget_gateway(self, gateway: str, why: str) -> None:
        known = self.gateways.pop(gateway, None)
        if known is not None:
            self.witness.gateway(known[0], gone=why)
            self._changed()
        self.ledger.forget_gateway(gateway)


def _revision(version: str) -> int:
    return int(version.rpartition(".")[2] or 0)


def _about_regions(settings: Settings, labelled: set[str]) -> list[str]:
    wanted = set(settings.regions)
    if not labelled and len(wanted) > 1:
        return ["no Ray node carries a `region` label: the regions are logical, instances run on any node"]
    missing = sorted(wanted - labelled) if labelled else []
    return [f"no Ray node carries the label region={region}: nothing can run there" for region in missing]
