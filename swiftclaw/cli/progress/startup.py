"""What `up` waits for: compares the status with what should run. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|InUse|NotFound)(:|$)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
GAVE_UP = "in a row"  # Serve's message when it stops retrying an UNHEALTHY app; without it, a lost replica is being replaced


@dataclass(frozen=True)
class StartupProgress:
    """`missing` and `failed` are sentences. Startup is done when both are empty."""

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


def of_controller(message: str, failed: bool) -> StartupProgress:
    """While the admin port is not open yet: only Serve's status of the Controller's app is available."""
    if failed:
        return StartupProgress(failed=[f"swiftclaw: {brief(message)}"])
    return StartupProgress(missing=["the Controller"])


def of_status(
    status: Mapping[str, Any], edges: Mapping[tuple[str, int, str], int], agents: Iterable[str] = ()
) -> StartupProgress:
    """`status`: the reply of /api/status. `edges`: (host, port, region) -> gateway replicas that should run. `agents`: the
    agents that should run."""
    present = {agent["name"] for agent in status["agents"]}
    problems = {app: brief(reason) for app, reason in status["problems"].items()}
    for name, app in status["apps"].items():
        if app["status"] == "DEPLOY_FAILED" or (app["status"] == "UNHEALTHY" and GAVE_UP in app["message"]):
            problems.setdefault(name, brief(app["message"]))
    regions = [counts for agent in status["agents"] for counts in agent["regions"].values()]
    return StartupProgress(
        healthy=sum(counts["healthy"] for counts in regions),
        instances=sum(counts["instances"] for counts in regions),
        missing=[
            *_missing_gateways(status, edges),
            *_missing_instances(status),
            *(f"agent {name}: waiting for the Controller to add it" for name in agents if name not in present),
        ],
        failed=[f"{app}: {reason}" for app, reason in sorted(problems.items())],
    )


def with_versions(progress: StartupProgress, status: Mapping[str, Any], versions: Mapping[str, str]) -> StartupProgress:
    """Add the rollouts: one in progress is missing, one that was rolled back has failed. `versions`: agent -> version in the
    file."""
    missing, failed = [], []
    for agent in status["agents"]:
        rollout, version = agent["rollout"], versions.get(agent["name"])
        if rollout["canary"] and rollout["percent"] != rollout["target"]:
            missing.append(f"{rollout['canary']} of agent {agent['name']}: waiting for {rollout['target']:g} % of the traffic")
        elif version != rollout["stable"] and rollout["last"].startswith(f"{version} was rolled back"):
            failed.append(f"{agent['name']}: {rollout['last']}")
    return replace(progress, missing=[*progress.missing, *missing], failed=[*progress.failed, *failed])


def brief(message: str) -> str:
    """One line of a long message: the last exception of a traceback, else the first line."""
    lines = [line.strip() for line in COLOUR.sub("", message).splitlines() if line.strip()]
    raised = [line for line in lines[1:] if RAISED.match(line)]
    return raised[-1] if raised else lines[0] if lines else "no reason given"


def _missing_gateways(status: Mapping[str, Any], edges: Mapping[tuple[str, int, str], int]) -> list[str]:
    running = Counter((one["host"], one["port"], one["region"]) for one in status["gateways"] if not one.get("worker_of"))
    return [
        f"{running[edge]} of {desired} gateways running on {edge[0]}:{edge[1]} in {edge[2]}"
        for edge, desired in edges.items()
        if running[edge] < desired
    ]


def _missing_instances(status: Mapping[str, Any]) -> list[str]:
    """With Serve's own message where there is one, such as that no node has enough CPUs."""
    missing = []
    for agent in status["agents"]:
        for region, counts in agent["regions"].items():
            if counts["healthy"] >= counts.get("least", counts["instances"]):
                continue
            looping = [
                f"{one['id']} {one['message']}"
                for one in status.get("crash_loops", [])
                if (one["agent"], one["region"]) == (agent["name"], region)
            ]
            reason = "; ".join(looping) or " ".join(
                brief(app["message"])
                for name, app in status["apps"].items()
                if name.startswith(f"{agent['name']}.") and name.endswith(f".{region}") and app["message"]
            )
            line = f"agent {agent['name']} in {region}: {counts['healthy']} of {counts['instances']} instances healthy"
            missing.append(f"{line} ({reason})" if reason else line)
    return missing
