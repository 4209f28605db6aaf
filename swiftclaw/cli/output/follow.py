"""How a change of versions goes on, as the admin port shows it, until it is done, refused or takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.output.reporter import ProgressReporter

POLL_S = 0.5


@dataclass(frozen=True)
class FollowStep:
    """How far it is: a line about it, and whether that is the end."""

    line: str
    done: bool = False
    failed: bool = False


def coming(status: Mapping[str, Any], agent: str, version: str, percent: float) -> FollowStep:
    """`version` is to get `percent`; with 100 it is to be the stable one, and what was there before to be gone."""
    seen = _agent(status, agent)
    if seen is None:
        return FollowStep(f"waiting for {agent}")
    rollout, healthy = seen["rollout"], _healthy(seen, version)
    if rollout["canary"] == version:
        has = rollout["percent"]
        if has == rollout["target"] and (has == percent or (has > percent and not rollout["paused"])):  # the analysis goes on
            return _told(status, f"{version} has {has:g} % of the traffic of {agent}")
        if has == rollout["target"]:
            return FollowStep(f"{version} of {agent} {rollout['note'] or f'has {has:g} %'}", failed=True)
        return FollowStep(f"{version} is on its way to {rollout['target']:g} %: {healthy} instances healthy")
    if rollout["stable"] != version:
        return FollowStep(rollout["last"] or f"{agent} runs {rollout['stable']}, and no {version}", failed=True)
    others = [one for one in seen["versions"] if one["version"] != version and one["instances"]]
    if others:
        left = ", ".join(f"{one['version']} ({one['instances']} left)" for one in others)
        return FollowStep(f"{version} has all the traffic of {agent}; draining {left}")
    return _told(status, f"{version} has all the traffic of {agent}")


def going(status: Mapping[str, Any], agent: str, version: str) -> FollowStep:
    """`version` is to lose its traffic and to be gone."""
    seen = _agent(status, agent)
    if seen is None:
        return FollowStep(f"{agent} is gone", done=True)
    left = sum(one["instances"] for one in seen["versions"] if one["version"] == version)
    stable = seen["rollout"]["stable"]
    if left:
        return FollowStep(f"{stable} has all the traffic of {agent}; draining {version} ({left} left)")
    return _told(status, f"{stable} has all the traffic of {agent}, {version} is gone")


def starting(status: Mapping[str, Any], agent: str) -> FollowStep:
    """All of an agent's instances are to be healthy."""
    seen = _agent(status, agent)
    if seen is None:
        return FollowStep(f"waiting for {agent}")
    problems = [reason for app, reason in status["problems"].items() if app.startswith(f"{agent}.")]
    if problems:
        return FollowStep(f"{agent} cannot start: {problems[0]}", failed=True)
    regions = seen["regions"].values()
    wanted, healthy = sum(one["instances"] for one in regions), sum(one["healthy"] for one in regions)
    line = f"{agent}: {healthy} of {wanted} instances healthy in {', '.join(seen['regions'])}"
    return FollowStep(line) if healthy < wanted else _told(status, line)


def follow(api: AdminApi, look: Callable[[Mapping[str, Any]], FollowStep], reporter: ProgressReporter, timeout_s: float) -> str:
    """Until `look(status)` says that it is done: its line then. Raises CommandFailed."""
    deadline, line = time.monotonic() + timeout_s, "waiting for the Controller"
    while True:
        try:
            found = look(api.status())
            line = found.line
            if found.failed:
                raise CommandFailed(line)
            if found.done:
                return line
        except AdminUnreachable:  # a Controller that restarts goes on with it
            line = "waiting for the Controller"
        reporter.say(line)
        if time.monotonic() > deadline:
            raise CommandFailed(f"not done after {timeout_s:g} s, and still going on: {line}")
        time.sleep(POLL_S)


def _agent(status: Mapping[str, Any], agent: str) -> Mapping[str, Any] | None:
    return next((one for one in status["agents"] if one["name"] == agent), None)


def _healthy(seen: Mapping[str, Any], version: str) -> str:
    one = next((one for one in seen["versions"] if one["version"] == version), {"healthy": 0, "desired": 0})
    return f"{one['healthy']} of {one['desired']}"


def _told(status: Mapping[str, Any], line: str) -> FollowStep:
    """It is true for the Controller; done is when every gateway acts on it."""
    behind = sum(not gateway["current"] for gateway in status["gateways"])
    late = f"{line}; not yet known to {behind} of {len(status['gateways'])} gateways"
    return FollowStep(late if behind else line, done=not behind)
