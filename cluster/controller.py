"""The Controller: wires the control plane's parts together and serves its two call surfaces (cluster/controller_api.py).

One replica of the Serve app `swiftclaw`. It reconciles (compares the desired with the observed state and acts on the
difference), so a crash between two steps is repaired by the next round. Nothing on the request path waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import ray

from cluster.admin.app import AdminApp
from cluster.admin.ray_metrics import RayMetrics
from cluster.admin.sampler import Sampler
from cluster.config import parse
from cluster.config.agent_settings import HealthCheck
from cluster.controller_api import ControlApi, OperatorApi, control_methods, method_names
from cluster.desired.autoscaling import Autoscaling
from cluster.desired.canary_analysis import CanaryAnalysis
from cluster.desired.desired import DesiredState
from cluster.desired.failpoints import Failpoints
from cluster.desired.packages import Package, Packages
from cluster.desired.rollout_manager import DeployRequest
from cluster.desired.state import State, Store
from cluster.fleet.crash_loops import CrashLoops
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.fault_injection import FaultInjector
from cluster.fleet.gateways import Gateways
from cluster.fleet.health_checks import HealthChecker
from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.liveness import LivenessWatch
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.fleet.shared_breakers import SharedBreakers
from cluster.messages import (
    GatewayHello,
    Observation,
    Registration,
    RegistrationReply,
    Rejected,
    Snapshot,
    StartPermit,
    StartRequest,
)
from cluster.placement.reconciler import Reconciler
from cluster.placement.serve import Placement
from cluster.snapshot import SnapshotBuilder, wanted
from cluster.telemetry.events import Events
from cluster.telemetry.history import MetricHistory
from cluster.telemetry.totals import MetricTotals
from cluster.transport.listener import Listener, bind_in_time
from cluster.transport.rpc import RpcAddress, RpcServer
from cluster.transport.running_clock import running_time
from cluster.view import ClusterView
from policies.lifecycle.draining import DrainTerms

log = logging.getLogger("swiftclaw.controller")


class Controller:
    """Instances and gateways call it through its control port, the command line through a Serve handle."""

    def __init__(self, args: dict[str, Any], folder: str, placement: Placement, instance_host: str = "") -> None:
        self._instance_host, self._placement = instance_host, placement
        state_dir = Path(parse(args, Path(folder)).state_dir)
        self._store, at = Store(state_dir), Failpoints(state_dir)
        self._state = self._recover()
        self._key, self._session_keys = self._store.key(), self._store.session_keys()
        self.events = Events()
        self._desired = DesiredState(self._state, self._store, Packages(state_dir / "packages"), self.events, at)
        self._desired.start_with(args, folder)
        self.versions = self._desired.versions
        self.registry = Registry(self._changed)
        self.registry.restore(self._state.instances)
        self._recorder = EventRecorder(self.events, self.registry)
        self._crash_loops = CrashLoops(self.registry, on_crash=self._recorder.crash_loop)
        self._breakers = SharedBreakers()
        self._totals = MetricTotals()
        self._autoscaling = Autoscaling(self.registry, self._state.counts)
        self._analysis = CanaryAnalysis(self._totals, self._is_tripped, self._crash_loops.crashes)
        self._gateways = Gateways(self._recorder, self._totals, self._changed, running_time)
        self._reconciler = Reconciler(
            self._desired, placement, self.registry, self._gateways, self._autoscaling, self._analysis, self._crash_loops,
            self._changed, at, instance_host,
        )  # fmt: skip
        self.view = ClusterView(
            self._desired, self.registry, self._gateways, self._breakers, self.versions, self._analysis, self._autoscaling,
            self._reconciler, self._totals, MetricHistory(), self.events, self._crash_loops,
        )  # fmt: skip
        self._snapshots = SnapshotBuilder(self.view, self._key)
        self._instances = InstanceClient(self._key)
        self._watch = LivenessWatch(self.registry, self._instances)
        self._checks = HealthChecker(self.registry, self._instances, self._health_check_of, Random())
        self._take_away = FaultInjector(self.registry, self._instances, self._crash_loops.stopped)
        self._control = RpcServer(control_methods(self), self._key, interrupted=[ControlApi.next_snapshot.__name__])
        self._admin: Listener | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._down_within_s: float | None = None  # set by `down`: time limit for requests in flight

    async def start(self) -> None:
        """Open the admin port and start to reconcile. Raises PortInUse."""
        admin = self._desired.settings.admin
        self._admin = Listener(AdminApp(self.view).app(), await bind_in_time(admin.host, admin.port), grace_s=1)
        await self._admin.start()
        await self._control.open(self._instance_host or ray.util.get_node_ip_address())
        for record in self.registry:
            self._attend(record)
        self._spawn(self._reconciler.run_for_ever())
        self._spawn(Sampler(self.view, self._recorder, RayMetrics().export).run_forever())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._watch.close()
        await self._checks.close()
        await self._instances.close()
        await self._control.close()
        if self._admin is not None:
            await self._admin.close()

    # --- called by instances and gateways (by cluster/transport/rpc.py) -------------------------------------------------

    async def control(self) -> RpcAddress:
        """The address of the control port: the only call that instances and gateways make by Serve handle."""
        while not self._control.address.port:
            await asyncio.sleep(0.05)
        return self._control.address

    async def request_start(self, request: StartRequest) -> StartPermit:
        """How long a new instance process waits. At its first call, its peers are checked: it replaces the one that died."""
        loops = self._crash_loops
        if loops.is_new(request.replica):
            await asyncio.gather(*(self._watch.verify(peer) for peer in self.registry.of(request.agent, request.version)))
            if loops.starting(request.app):
                loops.retain(request.app, await self._placement.replicas(request.app), time.monotonic())
        return loops.request_start(request, time.monotonic())

    async def register(self, new: Registration) -> RegistrationReply:
        """Register an instance. Its peers are checked first, so that the name of a dead one is free again."""
        if self.registry.get(new.replica) is None:
            await asyncio.gather(*(self._watch.verify(peer) for peer in self.registry.of(new.agent)))
        new = replace(new, id=new.id or self._crash_loops.name_of(new.replica))
        record = self.registry.admit(new, self._crash_loops.reserved(new.agent))
        self._reconciler.problems.pop(new.app, None)
        self._attend(record)
        wants_code = bool(new.package) and not self.versions.packages.has(new.package)
        return RegistrationReply(record.id, self._key, self._drain_terms(new.agent) or DrainTerms(), wants_code)

    async def deregister_instance(self, replica: str, agent: str) -> DrainTerms | None:
        """Drain an instance that is about to stop. None: its agent was removed, and sessions are not waited for."""
        self._crash_loops.stopped(replica)
        self.registry.drain(replica, "stopping")
        return self._drain_terms(agent)

    async def cannot_start(self, app: str, replica: str, reason: str) -> None:
        """Record that a replica of `app` gave up while starting."""
        self._crash_loops.failed(replica, reason, time.monotonic())
        self._reconciler.problems[app] = reason
        self._changed()
        log.error("%s cannot start: %s", app, reason)

    async def next_snapshot(self, hello: GatewayHello, version: str | None) -> Snapshot | None:
        """Wait for a snapshot newer than the gateway's `version`; None when there is none in time."""
        self._gateways.observe(hello, version)
        self._reconciler.problems.pop(hello.app, None)
        try:
            changed = await self._gateways.wait_for_change(version, self._reconciler.is_ready)
        except asyncio.CancelledError:  # its connection broke
            self._gateways.suspect(hello.gateway)
            raise
        if not changed:
            return None
        return self._snapshots.build(self._session_keys, time.monotonic())

    async def observe(self, observation: Observation) -> None:
        """Take in what a gateway counted since its last observation."""
        if observation.orphaned:
            await self.gateway_ended(observation.gateway)
        else:
            self._gateways.acknowledge(observation.gateway)
        if not self._totals.add(observation, time.monotonic()):
            return
        self._count_in_flight()
        if self._autoscaling.observe(observation, running_time()):
            self._reconciler.hurry()
        self._share_breakers(observation)
        for _, replica in observation.unreachable:
            record = self.registry.get(replica)
            if record is not None:
                self._spawn(self._watch.verify(record))

    async def deregister_gateway(self, gateway: str) -> None:
        self._gateways.forget(gateway, "stopped")

    async def gateway_ended(self, gateway: str) -> None:
        self._gateways.forget(gateway, "has ended: its process has died")

    # --- called by the command line ------------------------------------------------------------------------------

    async def operate(self, method: str, *arguments: Any) -> Any:
        """Call a method of OperatorApi. A rejection is the reply: Serve would log an exception with a traceback."""
        if method not in method_names(OperatorApi):
            return Rejected(f"there is no method {method}; the command may be of another version than the Controller")
        try:
            return await getattr(self, method)(*arguments)
        except (ValueError, OSError) as error:  # StateNotSaved is an OSError
            return Rejected(str(error))

    async def apply(self, args: dict[str, Any], folder: str) -> None:
        """Apply cluster.yaml. Returns when it is saved and a reconciliation round has started to act on it.

        Apps that failed to start are tried again.
        """
        if parse(args, Path(folder)).admin != self._desired.settings.admin:
            raise ValueError("admin: cannot be changed while SwiftClaw is running; run `swiftclaw down` first")
        before = self._desired.file
        self._desired.apply_file(args, folder)
        self._recorder.applied(before, self._desired.file)
        self._crash_loops.reset()
        self._reconciler.try_again()
        self._changed()
        await self._reconciler.round()

    async def current(self) -> tuple[dict[str, Any], str]:
        """(args, folder) of the desired state."""
        return dict(self._state.config.args), self._state.config.folder

    async def deploy(self, agent: str, wish: DeployRequest) -> tuple[str, str]:
        """For `swiftclaw deploy`: (the action taken, the version). Raises ValueError with a sentence."""
        taken = {app.version for app in self._state.apps.values() if app.agent == agent}
        taken |= {record.registration.version for record in self.registry.of(agent)}
        action, version = self.versions.deploy(agent, wish, sorted(taken))
        self._reconciler.wake()
        return action, version

    async def promote(self, agent: str, percent: float) -> str:
        """Set the canary's target share; returns its version. Raises ValueError with a sentence."""
        return self._acted(self.versions.promote(agent, percent))

    async def pause(self, agent: str, paused: bool) -> str:
        """Pause or resume the canary analysis; returns the canary's version. Raises ValueError with a sentence."""
        return self._acted(self.versions.pause(agent, paused))

    async def rollback(self, agent: str) -> str:
        """Send all traffic to the stable version; returns the version that is removed. Raises ValueError with a sentence."""
        return self._acted(self.versions.take_back(agent, "requested by an operator"))

    async def has_package(self, digest: str) -> bool:
        return self.versions.packages.has(digest)

    async def take_package(self, digest: str, content: bytes) -> None:
        """Store a package: from `swiftclaw deploy`, or from a running instance after the state folder was lost."""
        await asyncio.to_thread(self.versions.packages.put, Package(digest, content))

    async def package(self, digest: str) -> bytes | None:
        """Read a package, for the instances that will run it."""
        return await asyncio.to_thread(self.versions.packages.get, digest)

    def _acted(self, version: str) -> str:
        self._reconciler.wake()
        return version

    async def rotate_session_key(self) -> None:
        """Sign session tokens with a new key; tokens signed with the previous key stay valid."""
        self._session_keys = self._store.rotate_session_key(self._session_keys)
        self._changed()

    async def scale(self, agent: str, region: str | None, instances: int) -> str:
        """For `swiftclaw scale`: the change, as a sentence. Raises ValueError if the bounds forbid it."""
        change = self._autoscaling.fix(self._desired.file, agent, region, instances, time.time(), self._desired.commit)
        self._desired.scaled([change])
        self._changed()
        await self._reconciler.round()
        return str(change)

    async def take_away(self, agent: str, instance: str, mode: str, seconds: float) -> None:
        """Inject a fault, for `swiftclaw test failover` (cluster/fleet/fault_injection.py). Raises ValueError."""
        await self._take_away.inject(agent, instance, mode, seconds)
        action = f"took {instance} out of service ({mode})" if seconds else f"returned {instance} to service"
        message = f"`swiftclaw test failover` {action}"
        self.events.add("instance", message, agent=agent, instance=instance, mode=mode, seconds=seconds)

    async def stop_gateways(self) -> list[str]:
        """First half of `down`: accept no new connections, finish requests in flight. Returns the gateways' apps."""
        return await self._stop([name for name, app in self._state.apps.items() if not app.agent])

    async def stop_apps(self, within_s: float) -> list[str]:
        """Delete every app but the Controller itself; returns their names.

        Requests in flight are aborted after `within_s`; sessions are not waited for.
        """
        self._down_within_s = within_s
        return await self._stop(list(self._state.apps))

    async def in_flight(self) -> dict[str, int]:
        """Agent -> requests in flight on its instances."""
        counts: dict[str, int] = {}
        for record in self.registry:
            agent = record.registration.agent
            counts[agent] = counts.get(agent, 0) + record.in_flight
        return counts

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _stop(self, apps: list[str]) -> list[str]:
        self._desired.forget_all()
        for task in self._tasks:
            task.cancel()
        await self._reconciler.take_down(apps)
        return apps

    def _drain_terms(self, agent: str) -> DrainTerms | None:
        settings = self._desired.settings.agents.get(agent)
        if settings is None:
            return None
        within_s = self._down_within_s
        if within_s is not None:
            return DrainTerms(settings.request_timeout_s, min(within_s, settings.drain_timeout_s), keep_sessions=False)
        # The last instance of an agent at zero waits for no session: a new request starts another one when this one is gone.
        at_zero = settings.scaling is not None and not wanted(settings)
        keep_sessions = self.view.keeps_sessions(settings) and not at_zero
        return DrainTerms(settings.request_timeout_s, settings.drain_timeout_s, keep_sessions)

    def _recover(self) -> State:
        """The saved state, if it belongs to this Ray cluster."""
        cluster = ray.get_runtime_context().get_node_id()
        state = self._store.load()
        return state if state is not None and state.ray_cluster == cluster else State(ray_cluster=cluster)

    def _is_tripped(self, agent: str, version: str) -> bool:
        replicas = [record.registration.replica for record in self.registry.of(agent, version)]
        return self._breakers.all_tripped(replicas, time.monotonic())

    def _share_breakers(self, observation: Observation) -> None:
        """Pass breaker changes of one gateway on to the others, with the next snapshot."""
        present = {replica: record for _, replica in observation.circuits if (record := self.registry.get(replica)) is not None}
        updates = {replica: update for (_, replica), update in observation.circuits.items() if replica in present}
        for replica, (_, state) in self._breakers.observe(observation.gateway, updates, time.monotonic()).items():
            self._recorder.circuit(present[replica], state)
        if any(update.state != "half-open" for update in updates.values()):  # probing is local to one gateway
            self._changed()

    def _count_in_flight(self) -> None:
        """One figure for the admin port, the command line, the metrics and autoscaling."""
        for record in self.registry:
            record.in_flight = self._totals.active(record.key)

    def _attend(self, record: InstanceRecord) -> None:
        self._watch.attend(record)
        self._checks.attend(record)

    def _health_check_of(self, agent: str) -> HealthCheck | None:
        settings = self._desired.settings.agents.get(agent)
        return settings.health_check if settings else None

    def _changed(self) -> None:
        """Save a change that gateways must know of, record it as events, and announce it to them."""
        self._gateways.count_change()
        self._count_in_flight()  # a gateway may be gone
        self._breakers.keep({record.registration.replica for record in self.registry})
        self._snapshots.remember_rules()
        self._crash_loops.sync(time.monotonic())
        self._state.instances = self.registry.dump()
        self._desired.save()
        self._recorder.instances(self.registry)
        self._recorder.levels(self._desired.settings, self.registry)
        self._gateways.announce()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
