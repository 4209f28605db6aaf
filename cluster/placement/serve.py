"""From what should run to Serve apps: one per (agent, version, region), one per gateway entry.

`plan` compares and says what to do (pure); `Placement` does it. Calls into Serve block and must not run on the event loop
that answers registering replicas, so they run in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ray
from ray import serve

from cluster.config import AgentSettings, GatewaySettings, Settings
from cluster.desired.rollout import instances_for
from cluster.messages import InstanceSpec
from cluster.placement.serve_internals import end_unstarted, free_per_node, scale

log = logging.getLogger("swiftclaw.placement")

REGION_LABEL = "region"
INSTANCE_DEPLOYMENT = "Instance"
GATEWAY_DEPLOYMENT = "Gateway"
ENDING_S = 45.0  # after a drain's deadline: to tell whom it cut off, and for the agent's stop hooks
WEDGED_AFTER_S = 10.0  # Serve's check of an instance runs on its event loop; three that get no answer in time: restarted
GATEWAY_DRAIN_S = 600.0  # how long streams through a gateway that stops may go on
QUIET = {"enable_access_log": False}  # Serve would log a line for each call of a gateway to the Controller


@dataclass(frozen=True)
class AppSpec:
    """One Serve app that should run."""

    name: str
    kind: Literal["instance", "gateway"]
    region: str
    replicas: int
    start: InstanceSpec | GatewaySettings
    cpus: float
    gpus: float
    placed: bool  # by the node label; else anywhere
    drain_s: float
    host: str = ""  # where a gateway listens for the others; "": on its node's address
    runtime_env: dict[str, object] = field(default_factory=dict)  # in Ray's words

    @property
    def identity(self) -> str:
        """Changes when running replicas would have to be replaced; the count is not part of it."""
        fixed = {**asdict(self), "replicas": None, "placed": None, "drain_s": None}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def remembered(self) -> dict[str, Any]:
        known = {"identity": self.identity, "replicas": self.replicas, "agent": ""}
        if isinstance(self.start, InstanceSpec):
            known |= {"agent": self.start.agent, "version": self.start.version, "package": self.start.package}
        return known


@dataclass(frozen=True)
class Deployed:
    """One version of an agent: its settings, the digest of its code, and the share that it needs instances for."""

    settings: AgentSettings
    package: str = ""
    percent: float = 100.0


def app_name(agent: str, version: str, region: str) -> str:
    return f"{agent}.{version}.{region}"


def labelled_regions(nodes: Iterable[Mapping[str, Any]]) -> set[str]:
    """Regions for which a living Ray node carries the label (`ray.nodes()` as input)."""
    return {node["Labels"][REGION_LABEL] for node in nodes if node["Alive"] and REGION_LABEL in (node.get("Labels") or {})}


def desired_apps(
    settings: Settings, labelled: set[str], host: str = "", versions: Mapping[str, Iterable[Deployed]] | None = None
) -> dict[str, AppSpec]:
    """Every app that the settings ask for. Regions are logical where no node carries any region label.

    `host`: where instances, and gateways for each other, listen when not on their node's address. `versions`: those of
    each agent; without them the one that the settings name.
    """
    apps: dict[str, AppSpec] = {}
    for gateway in settings.gateways:
        name = f"gateway.{gateway.region}"
        apps[name] = AppSpec(
            name, "gateway", gateway.region, gateway.replicas, gateway, 0, 0, bool(labelled), GATEWAY_DRAIN_S, host
        )
    for agent in settings.agents.values():
        for region, wanted in agent.regions.items():
            for one in [Deployed(agent)] if versions is None else versions[agent.name]:
                replicas = instances_for(one.percent, wanted.instances)
                if replicas:  # Serve has no app without
                    spec = _instances(one, settings.folder, region, replicas, host, placed=bool(labelled))
                    apps[spec.name] = spec
    return apps


def _instances(one: Deployed, folder: str, region: str, replicas: int, host: str, *, placed: bool) -> AppSpec:
    agent = one.settings
    name = app_name(agent.name, agent.version, region)
    start = InstanceSpec(agent.name, agent.agent, folder, agent.version, region, name, host, one.package)
    return AppSpec(
        name, "instance", region, replicas, start, agent.resources.cpus, agent.resources.gpus, placed, agent.drain_timeout_s,
        runtime_env=agent.runtime_env,
    )  # fmt: skip


@dataclass(frozen=True)
class Action:
    """One step from what runs to what should."""

    do: Literal["start", "scale", "delete"]
    app: str
    spec: AppSpec | None = None


def plan(
    desired: Mapping[str, AppSpec],
    remembered: Mapping[str, Mapping[str, Any]],
    running: Mapping[str, str],
    well: Collection[str],
) -> list[Action]:
    """`remembered`: what was started by us (state file); `running`: Serve's apps and their status.

    An app that runs but is not remembered (the state file was lost) is adopted when it is desired, and left alone when
    it is not: it may be somebody else's. `well`: apps that have a healthy instance: an agent that moves to other regions
    has one of those among them before it leaves the last of the old ones. A version that is not desired any more goes at
    once: whether it is still needed is for cluster/desired/rollout.py to say.
    """
    actions = []
    for name, spec in desired.items():
        if running.get(name) == "DELETING":
            continue  # started again once it is gone
        known = remembered.get(name)
        failed = known is None and running.get(name) == "DEPLOY_FAILED"
        if failed or name not in running or (known is not None and known["identity"] != spec.identity):
            actions.append(Action("start", name, spec))
        elif known is not None and known["replicas"] != spec.replicas:
            actions.append(Action("scale", name, spec))
    starts = {name: spec.start for name, spec in desired.items() if isinstance(spec.start, InstanceSpec)}
    served = {start.agent for name, start in starts.items() if running.get(name) == "RUNNING" and name in well}
    waiting = {(start.agent, start.version) for start in starts.values() if start.agent not in served}
    for name, known in remembered.items():
        if name in desired or running.get(name, "DELETING") == "DELETING":
            continue
        if (known["agent"], known.get("version")) not in waiting:
            actions.append(Action("delete", name))
    return actions


@dataclass(frozen=True)
class NodeResources:
    """One living Ray node."""

    region: str | None  # None: it carries no label
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True)
class AppStatus:
    """What Serve says of one app."""

    status: str
    message: str


class Placement:
    """Serve, as the Controller uses it. The classes that replicas run are given: this package does not know them."""

    def __init__(self, instance: type, gateway: type) -> None:
        self._instance, self._gateway = instance, gateway

    async def labelled(self) -> set[str]:
        return labelled_regions(await asyncio.to_thread(ray.nodes))

    async def nodes(self) -> list[NodeResources]:
        """The living Ray nodes and what is free there."""
        return await asyncio.to_thread(_nodes)

    async def running(self) -> dict[str, AppStatus]:
        status = await asyncio.to_thread(serve.status)
        return {
            name: AppStatus(
                app.status.value,
                " ".join([app.message, *(one.message for one in app.deployments.values() if one.message)]).strip(),
            )
            for name, app in status.applications.items()
        }

    async def start(self, specs: list[AppSpec]) -> None:
        """Returns when Serve knows of them, not when they run."""
        targets = [
            serve.RunTarget(self._bound(spec), name=spec.name, route_prefix=None, external_scaler_enabled=True)
            for spec in specs
        ]
        await asyncio.to_thread(
            serve.run_many,
            targets,
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    async def scale(self, spec: AppSpec) -> None:
        deployment = INSTANCE_DEPLOYMENT if spec.kind == "instance" else GATEWAY_DEPLOYMENT
        await asyncio.to_thread(scale, spec.name, deployment, spec.replicas)

    async def delete(self, app: str, present: Collection[str]) -> None:
        """Returns when Serve has begun; replicas that are `present` (have registered) drain first, others never ran."""
        await asyncio.to_thread(serve.delete, app, _blocking=False)
        await asyncio.to_thread(end_unstarted, app, present)

    def _bound(self, spec: AppSpec) -> Any:
        actor_options: dict[str, Any] = {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
        if spec.placed:
            actor_options["label_selector"] = {REGION_LABEL: spec.region}
        if spec.runtime_env:
            actor_options["runtime_env"] = spec.runtime_env
        instance = spec.kind == "instance"
        deployment = serve.deployment(self._instance if instance else self._gateway).options(
            name=INSTANCE_DEPLOYMENT if instance else GATEWAY_DEPLOYMENT,
            num_replicas=spec.replicas,
            ray_actor_options=actor_options,
            max_ongoing_requests=10_000,
            health_check_period_s=2,
            health_check_timeout_s=WEDGED_AFTER_S if instance else 30,
            graceful_shutdown_timeout_s=spec.drain_s + ENDING_S,
            graceful_shutdown_wait_loop_s=0.1,
            logging_config=QUIET,
        )
        return deployment.bind(spec.start, spec.name) if instance else deployment.bind(spec.start, spec.name, spec.host)


def _nodes() -> list[NodeResources]:
    free = free_per_node()
    return [
        NodeResources((node.get("Labels") or {}).get(REGION_LABEL), node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
