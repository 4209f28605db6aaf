"""Which Serve apps should run, and which steps lead there? One app per (agent, version, region), one per gateway entry.

Pure: `desired_apps` turns settings into apps, `plan` compares them with what runs. Who carries the steps out:
cluster/placement/reconciler.py, with the Serve calls of cluster/placement/serve.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.config import AgentSettings, GatewaySettings, Settings
from cluster.desired.rollout_transitions import instances_for
from cluster.desired.state import AppRecord
from cluster.messages import InstanceSpec

REGION_LABEL = "region"
GATEWAY_DRAIN_S = 600.0  # how long streams through a stopping gateway may continue


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
    placed: bool  # on nodes that carry the region's label; else on any
    drain_s: float
    host: str = ""  # where a gateway listens for other gateways; "": on its node's address
    runtime_env: dict[str, object] = field(default_factory=dict)  # Ray's own option

    @property
    def identity(self) -> str:
        """Differs when running replicas must be replaced; the count is not part of it."""
        fixed = {**asdict(self), "replicas": None, "placed": None, "drain_s": None}
        if self.kind == "gateway":
            fixed["start"] = {**asdict(self.start), "replicas": None}  # its settings have the count as well
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> AppRecord:
        """What the state file remembers of it."""
        if isinstance(self.start, InstanceSpec):
            return AppRecord(self.identity, self.replicas, self.start.agent, self.start.version, self.start.package)
        return AppRecord(self.identity, self.replicas)


@dataclass(frozen=True)
class Deployed:
    """One version of an agent that should run. `package`: its code's digest; `percent`: the share to have instances for."""

    settings: AgentSettings
    package: str = ""
    percent: float = 100.0


def app_name(agent: str, version: str, region: str) -> str:
    return f"{agent}.{version}.{region}"


def labelled_regions(nodes: Iterable[Mapping[str, Any]]) -> set[str]:
    """The regions that living Ray nodes carry as a label. `nodes`: what `ray.nodes()` returns."""
    return {node["Labels"][REGION_LABEL] for node in nodes if node["Alive"] and REGION_LABEL in (node.get("Labels") or {})}


def desired_apps(
    settings: Settings, labelled: set[str], host: str = "", versions: Mapping[str, Iterable[Deployed]] | None = None
) -> dict[str, AppSpec]:
    """Every app that the settings ask for. Regions are logical while no node carries a region label.

    `host`: where instances, and gateways for each other, listen; "": on their node's address. `versions`: the versions of
    each agent; None: the one that the settings name.
    """
    apps: dict[str, AppSpec] = {}
    for gateway in settings.gateways:
        name = f"gateway.{gateway.region}"
        apps[name] = AppSpec(
            name, "gateway", gateway.region, gateway.replicas, gateway, 0, 0, bool(labelled), GATEWAY_DRAIN_S, host
        )
    for agent in settings.agents.values():
        for region, wanted in agent.regions.items():
            for deployed in [Deployed(agent)] if versions is None else versions[agent.name]:
                replicas = instances_for(deployed.percent, wanted.instances)
                if replicas:  # Serve cannot run an app without replicas
                    spec = _instance_app(deployed, settings.folder, region, replicas, host, placed=bool(labelled))
                    apps[spec.name] = spec
    return apps


def _instance_app(deployed: Deployed, folder: str, region: str, replicas: int, host: str, *, placed: bool) -> AppSpec:
    agent = deployed.settings
    name = app_name(agent.name, agent.version, region)
    start = InstanceSpec(agent.name, agent.agent, folder, agent.version, region, name, host, deployed.package)
    return AppSpec(
        name, "instance", region, replicas, start, agent.resources.cpus, agent.resources.gpus, placed, agent.drain_timeout_s,
        runtime_env=agent.runtime_env,
    )  # fmt: skip


@dataclass(frozen=True)
class AppStatus:
    """Serve's report on one app."""

    status: str
    message: str


@dataclass(frozen=True)
class Action:
    """One step from what runs to what should run."""

    do: Literal["start", "scale", "delete"]
    app: str
    spec: AppSpec | None = None


def plan(
    desired: Mapping[str, AppSpec],
    started: Mapping[str, AppRecord],
    running: Mapping[str, str],
    healthy: Collection[str],
) -> list[Action]:
    """`started`: the apps that this Controller started (state file); `running`: Serve's apps and their status.

    An app that runs but was not started here (the state file was lost) is kept when it is desired, and left alone when it
    is not: it may belong to something else. `healthy`: apps with at least one healthy instance. An agent that moves to
    other regions needs one of the new apps among them before the last of the old ones is deleted. A version that is no
    longer desired is deleted at once: cluster/desired/rollout_transitions.py decides whether it is still needed.
    """
    actions = []
    for name, spec in desired.items():
        if running.get(name) == "DELETING":
            continue  # started again when Serve has deleted it
        app = started.get(name)
        failed = app is None and running.get(name) == "DEPLOY_FAILED"
        if failed or name not in running or (app is not None and app.identity != spec.identity):
            actions.append(Action("start", name, spec))
        elif app is not None and app.replicas != spec.replicas:
            actions.append(Action("scale", name, spec))
    starts = {name: spec.start for name, spec in desired.items() if isinstance(spec.start, InstanceSpec)}
    served = {start.agent for name, start in starts.items() if running.get(name) == "RUNNING" and name in healthy}
    waiting = {(start.agent, start.version) for start in starts.values() if start.agent not in served}
    for name, app in started.items():
        if name in desired or running.get(name, "DELETING") == "DELETING":
            continue
        if (app.agent, app.version) not in waiting:
            actions.append(Action("delete", name))
    return actions
