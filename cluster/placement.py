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
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray
from ray import serve

from cluster.config import GatewaySettings, Settings
from cluster.messages import InstanceSpec
from cluster.serve_internals import scale

log = logging.getLogger("swiftclaw.placement")

REGION_LABEL = "region"
INSTANCE_DEPLOYMENT = "Instance"
GATEWAY_DEPLOYMENT = "Gateway"
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

    @property
    def identity(self) -> str:
        """Changes when running replicas would have to be replaced; the count is not part of it."""
        fixed = {**asdict(self), "replicas": None, "placed": None, "drain_s": None}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def remembered(self) -> dict[str, Any]:
        agent = self.start.agent if isinstance(self.start, InstanceSpec) else ""
        return {"identity": self.identity, "replicas": self.replicas, "agent": agent}


def app_name(agent: str, version: str, region: str) -> str:
    return f"{agent}.{version}.{region}"


def labelled_regions(nodes: Iterable[Mapping[str, Any]]) -> set[str]:
    """Regions for which a living Ray node carries the label (`ray.nodes()` as input)."""
    return {node["Labels"][REGION_LABEL] for node in nodes if node["Alive"] and REGION_LABEL in (node.get("Labels") or {})}


def desired_apps(settings: Settings, labelled: set[str], host: str = "") -> dict[str, AppSpec]:
    """Every app that the settings ask for. Regions are logical where no node carries any region label.

    `host`: where instances listen, when not on their node's address.
    """
    apps: dict[str, AppSpec] = {}
    for gateway in settings.gateways:
        name = f"gateway.{gateway.region}"
        apps[name] = AppSpec(name, "gateway", gateway.region, gateway.replicas, gateway, 0, 0, bool(labelled), GATEWAY_DRAIN_S)
    for agent in settings.agents.values():
        for region, wanted in agent.regions.items():
            if not wanted.instances:
                continue  # Serve has no app without replicas
            name = app_name(agent.name, agent.version, region)
            spec = InstanceSpec(agent.name, agent.agent, settings.folder, agent.version, region, name, host)
            apps[name] = AppSpec(
                name, "instance", region, wanted.instances, spec, agent.resources.cpus, agent.resources.gpus,
                bool(labelled), agent.drain_timeout_s,
            )  # fmt: skip
    return apps


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
    it is not: it may be somebody else's. `well`: apps that have a healthy instance: what replaces an agent's apps (another
    version) must be among them before the old ones are deleted.
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
    unfinished = {
        spec.start.agent
        for name, spec in desired.items()
        if isinstance(spec.start, InstanceSpec) and (running.get(name) != "RUNNING" or name not in well)
    }
    for name, known in remembered.items():
        if name not in desired and running.get(name, "DELETING") != "DELETING" and known["agent"] not in unfinished:
            actions.append(Action("delete", name))
    return actions


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

    async def delete(self, app: str) -> None:
        """Returns when Serve has begun; its replicas drain first."""
        await asyncio.to_thread(serve.delete, app, _blocking=False)

    def _bound(self, spec: AppSpec) -> Any:
        actor_options: dict[str, Any] = {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
        if spec.placed:
            actor_options["label_selector"] = {REGION_LABEL: spec.region}
        instance = spec.kind == "instance"
        deployment = serve.deployment(self._instance if instance else self._gateway).options(
            name=INSTANCE_DEPLOYMENT if instance else GATEWAY_DEPLOYMENT,
            num_replicas=spec.replicas,
            ray_actor_options=actor_options,
            max_ongoing_requests=10_000,
            health_check_period_s=2,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=spec.drain_s,
            graceful_shutdown_wait_loop_s=0.1,
            logging_config=QUIET,
        )
        return deployment.bind(spec.start, spec.name)
