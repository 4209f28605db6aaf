"""The share of the traffic that each instance should receive. Pure.

First by version, then by priority level (policies/priority.py), then by weight within the level. This is exact for
round-robin without sessions. Other strategies also follow load or distance; for them it is only the share by weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.instance_state import DRAINING, HEALTHY, STARTING, STOPPED, UNHEALTHY
from policies.priority import Level, level_loads

Row = Mapping[str, Any]
IN_PANIC = (HEALTHY, UNHEALTHY)  # the states that receive requests when a level panics
NOT_COUNTED = (DRAINING, STOPPED)


def exact(agent: Mapping[str, Any]) -> bool:
    """Whether weights alone decide, so that the expected shares must hold."""
    return agent["strategy"] == "round-robin" and not agent["session_affinity"]


def expected(rows: Sequence[Row], agent: Mapping[str, Any]) -> dict[str, float]:
    """Instance -> percent. `rows` and `agent` as the admin port shows them."""
    shares = {row["id"]: 0.0 for row in rows}
    for version, percent in _versions(rows, agent).items():
        members = [row for row in rows if version in ("", row["version"])]
        for name, share in _within(members, agent["regions"]).items():
            shares[name] += percent * share / 100
    return shares


def without(rows: Sequence[Row], instance: str, mode: str) -> list[Row]:
    """The rows while the instance is out: killed or drained it is gone; unhealthy it still counts for its level."""
    if mode == "unhealthy":
        return [{**row, "state": UNHEALTHY} if row["id"] == instance else row for row in rows]
    return [row for row in rows if row["id"] != instance]


def _versions(rows: Sequence[Row], agent: Mapping[str, Any]) -> dict[str, float]:
    """Version -> percent; "" stands for all of them. Versions without a healthy instance leave their share to the others."""
    healthy = {row["version"] for row in rows if row["state"] == HEALTHY}
    weights = {one["version"]: one["weight"] for one in agent["versions"] if one["version"] in healthy}
    total = sum(weights.values())
    if len(healthy) <= 1 or not total:
        return {"": 100.0}
    return {version: 100 * weight / total for version, weight in weights.items()}


def _within(rows: Sequence[Row], regions: Mapping[str, Any]) -> dict[str, float]:
    """Instance -> percent, for the rows of one version."""
    levels: dict[int, list[Row]] = {}
    for row in rows:
        if row["state"] not in NOT_COUNTED:
            priority = regions.get(row["region"], {}).get("priority", 1)
            levels.setdefault(priority, []).append(row)
    ordered = [levels[priority] for priority in sorted(levels)]
    loads = level_loads([_level(members) for members in ordered])
    shares: dict[str, float] = {}
    for members, load, panic in zip(ordered, loads.healthy, loads.panic, strict=True):
        receivers = [row for row in members if row["state"] == HEALTHY or (panic and row["state"] in IN_PANIC)]
        total = sum(row["weight"] for row in receivers)
        shares |= {row["id"]: load * row["weight"] / total for row in receivers if total}
    return shares


def _level(members: Sequence[Row]) -> Level:
    states = [row["state"] for row in members]
    return Level(total=len(states), healthy=states.count(HEALTHY), excluded=states.count(STARTING))
