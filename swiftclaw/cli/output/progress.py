"""How far is it? Pure: what the admin port and Serve say -> what is there, what is missing, what failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|InUse|NotFound)(:|$)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
GIVEN_UP = "in a row"  # in Serve's words on an app that is UNHEALTHY; without them a lost process is being replaced


@dataclass(frozen=True)
class Progress:
    """`missing` and `failed` are sentences; done is when there are none of either."""

    healthy: int = 0
    instances: int = 0
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return not self.missing and not self.failed

    def __str__(self) -> str:
        if not self.instances and self.missing:
            return f"waiting for {self.missing[0]}"
        others = [what for what in self.missing if not what.startswith("agent ")]
        return f"{self.healthy} of {self.instances} instances healthy" + (f", {others[0]}" if others else "")


def of_controller(message: str, failed: bool) -> Progress:
    """While the admin port does not answer: what Serve says of the Controller's app."""
    if failed:
        return Progress(failed=[f"swiftclaw: {brief(message)}"])
    return Progress(missing=["the Controller"])


def of_status(status: Mapping[str, Any], edges: Mapping[tuple[str, int, str], int], agents: Iterable[str] = ()) -> Progress:
    """`status` as the admin port gives it; `edges`: (host, port, region) of a gateway -> replicas wanted; `agents`: those
    that must be known."""
    known = {agent["name"] for agent in status["agents"]}
    problems = {app: brief(reason) for app, reason in status["problems"].items()}
    for name, app in status["apps"].items():
        if app["status"] == "DEPLOY_FAILED" or (app["status"] == "UNHEALTHY" and GIVEN_UP in app["message"]):
            problems.setdefault(name, brief(app["message"]))
    healthy = sum(there["healthy"] for there in _regions(status))
    return Progress(
        healthy=healthy,
        instances=sum(there["instances"] for there in _regions(status)),
        missing=[
            *_missing_gateways(status, edges),
            *_missing_instances(status),
            *(f"agent {name}: the Controller does not know it" for name in agents if name not in known),
        ],
        failed=[f"{app}: {reason}" for app, reason in sorted(problems.items())],
    )


def with_versions(progress: Progress, status: Mapping[str, Any], wanted: Mapping[str, str]) -> Progress:
    """`wanted`: agent -> the version that the file names. One that comes in is waited for, one that was taken back failed."""
    missing, failed = [], []
    for agent in status["agents"]:
        rollout, name = agent["rollout"], wanted.get(agent["name"])
        if rollout["canary"] and rollout["percent"] != rollout["target"]:
            missing.append(f"{rollout['canary']} of agent {agent['name']}: it is to get {rollout['target']:g} % of the traffic")
        elif name != rollout["stable"] and rollout["last"].startswith(f"{name} was rolled back"):
            failed.append(f"{agent['name']}: {rollout['last']}")
    return replace(progress, missing=[*progress.missing, *missing], failed=[*progress.failed, *failed])


def brief(message: str) -> str:
    """The sentence of a long message: where a traceback is in it, the line with the last exception says what happened."""
    lines = [line.strip() for line in COLOUR.sub("", message).splitlines() if line.strip()]
    raised = [line for line in lines[1:] if RAISED.match(line)]
    return raised[-1] if raised else lines[0] if lines else "no reason given"


def _regions(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [there for agent in status["agents"] for there in agent["regions"].values()]


def _missing_gateways(status: Mapping[str, Any], edges: Mapping[tuple[str, int, str], int]) -> list[str]:
    present = Counter((one["host"], one["port"], one["region"]) for one in status["gateways"])
    return [
        f"{present[edge]} of {wanted} gateways on {edge[0]}:{edge[1]} in {edge[2]}"
        for edge, wanted in edges.items()
        if present[edge] < wanted
    ]


def _missing_instances(status: Mapping[str, Any]) -> list[str]:
    """With Serve's own words where it has some, such as that no node has enough CPUs."""
    missing = []
    for agent in status["agents"]:
        for region, there in agent["regions"].items():
            if there["healthy"] >= there.get("least", there["instances"]):
                continue
            said = " ".join(
                brief(app["message"])
                for name, app in status["apps"].items()
                if name.startswith(f"{agent['name']}.") and name.endswith(f".{region}") and app["message"]
            )
            what = f"agent {agent['name']} in {region}: {there['healthy']} of {there['instances']} healthy"
            missing.append(f"{what} ({said})" if said else what)
    return missing
