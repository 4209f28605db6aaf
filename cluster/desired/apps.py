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
from cluster.desired.rollout import instances_for
from cluster.messages import InstanceSpec

REGION_LABEL = "region"
GATEWAY_DRAIN_S = 600.0  # how long streams through a gateway that stops may go on


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
class AppStatus:
    """What Serve says of one app."""

    status: str
    message: str


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
