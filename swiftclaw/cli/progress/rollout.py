"""The progress of a rollout, as the admin port shows it, until it is done, has failed, or takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.progress.reporter import ProgressReporter

POLL_S = 0.5
WAITING = "waiting for the Controller"
Status = Mapping[str, Any]  # the reply of /api/status


@dataclass(frozen=True)
class RolloutStep:
    """How far the rollout is, as a line, and whether that is its end."""

    line: str
    done: bool = False
    failed: bool = False


def gaining_traffic(status: Status, agent: str, version: str, percent: float) -> RolloutStep:
    """Until `version` receives `percent` of the traffic. With 100 it becomes the stable version, and the others drain."""
    entry = _agent(status, agent)
    if entry is None:
        return RolloutStep(f"waiting for {agent}")
    rollout, healthy = entry["rollout"], _healthy(entry, version)
    if rollout["canary"] == version:
        share, target = rollout["percent"], rollout["target"]
        if share == target and (share == percent or (share > percent and not rollout["paused"])):  # the analysis raised it
            return _when_current(status, f"{version} receives {share:g} % of the traffic to {agent}")
        if share == target:
            return RolloutStep(f"{version} of {agent} {rollout['note'] or f'stays at {share:g} % of the traffic'}", failed=True)
        return RolloutStep(f"waiting to give {version} {target:g} % of the traffic: {healthy} instances healthy")
    if rollout["stable"] != version:
        return RolloutStep(
            rollout["last"] or f"{agent} runs {rollout['stable']}; version {version} does not exist", failed=True
        )
    others = [one for one in entry["versions"] if one["version"] != version and one["instances"]]
    if others:
        draining = ", ".join(f"{one['version']} ({one['instances']} left)" for one in others)
        return RolloutStep(f"{version} receives all traffic to {agent}; draining {draining}")
    return _when_current(status, f"{version} receives all traffic to {agent}")


def losing_traffic(status: Status, agent: str, version: str) -> RolloutStep:
    """Until `version` has drained and is removed."""
    entry = _agent(status, agent)
    if entry is None:
        return RolloutStep(f"{agent} is no longer deployed", done=True)
    left = sum(one["instances"] for one in entry["versions"] if one["version"] == version)
    stable = entry["rollout"]["stable"]
    if left:
        return RolloutStep(f"{stable} receives all traffic to {agent}; draining {version} ({left} left)")
    return _when_current(status, f"{stable} receives all traffic to {agent}; {version} is removed")


def starting(status: Status, agent: str) -> RolloutStep:
    """Until all of the agent's instances are healthy."""
    entry = _agent(status, agent)
    if entry is None:
        return RolloutStep(f"waiting for {agent}")
    problems = [reason for app, reason in status["problems"].items() if app.startswith(f"{agent}.")]
    if problems:
        return RolloutStep(f"{agent} cannot start: {problems[0]}", failed=True)
    regions = entry["regions"].values()
    desired, healthy = sum(one["instances"] for one in regions), sum(one["healthy"] for one in regions)
    line = f"{agent}: {healthy} of {desired} instances healthy in {', '.join(entry['regions'])}"
    return RolloutStep(line) if healthy < desired else _when_current(status, line)


def wait(api: AdminApi, step_of: Callable[[Status], RolloutStep], reporter: ProgressReporter, timeout_s: float) -> str:
    """Poll until `step_of(status)` is done; returns its line. Raises CommandFailed when it fails or time runs out."""
    deadline, line = time.monotonic() + timeout_s, WAITING
    while True:
        try:
            step = step_of(api.status())
            line = step.line
            if step.failed:
                raise CommandFailed(line)
            if step.done:
                return line
        except AdminUnreachable:  # a restarted Controller continues the rollout
            line = WAITING
        reporter.report(line)
        if time.monotonic() > deadline:
            raise CommandFailed(f"not finished after {timeout_s:g} s; the rollout continues in the background: {line}")
        time.sleep(POLL_S)


def _agent(status: Status, agent: str) -> Mapping[str, Any] | None:
    return next((one for one in status["agents"] if one["name"] == agent), None)


def _healthy(entry: Mapping[str, Any], version: str) -> str:
    counts = next((one for one in entry["versions"] if one["version"] == version), {"healthy": 0, "desired": 0})
    return f"{counts['healthy']} of {counts['desired']}"


def _when_current(status: Status, line: str) -> RolloutStep:
    """What holds for the Controller is done only when every gateway has the newest snapshot."""
    outdated = sum(not gateway["current"] for gateway in status["gateways"])
    waiting = f"{line}; {outdated} of {len(status['gateways'])} gateways not updated yet"
    return RolloutStep(waiting if outdated else line, done=not outdated)
