"""Which share of the traffic should each instance have, as the rules say? Pure.

By version, then by level of priority (policies/priority.py), then by weight within the level. That is exact for round-robin
without sessions; other strategies follow load and distance, so there it only says what an even split would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.priority import Level, level_loads

Row = Mapping[str, Any]
KNOWN_TO_ANSWER = ("healthy", "unhealthy")
NOT_COUNTED = ("draining", "stopped")


def exact(agent: Mapping[str, Any]) -> bool:
    return agent["strategy"] == "round-robin" and not agent["session_affinity"]


def expected(rows: Sequence[Row], agent: Mapping[str, Any]) -> dict[str, float]:
    """Percent by instance. `rows` and `agent` as the admin port gives them."""
    shares = {row["id"]: 0.0 for row in rows}
    for version, percent in _versions(rows, agent).items():
        members = [row for row in rows if version in ("", row["version"])]
        for name, share in _within(members, agent["regions"]).items():
            shares[name] += percent * share / 100
    return shares


def without(rows: Sequence[Row], instance: str, mode: str) -> list[Row]:
    """What is left: one that is killed or drained is gone, one that is unhealthy still counts for its level."""
    if mode == "unhealthy":
        return [{**row, "state": "unhealthy"} if row["id"] == instance else row for row in rows]
    return [row for row in rows if row["id"] != instance]


def _versions(rows: Sequence[Row], agent: Mapping[str, Any]) -> dict[str, float]:
    """Percent by version; "" is all of them alike. A version with nobody healthy leaves its part to the others."""
    there = {row["version"] for row in rows if row["state"] == "healthy"}
    weights = {one["version"]: one["weight"] for one in agent["versions"] if one["version"] in there}
    total = sum(weights.values())
    if len(there) <= 1 or not total:
        return {"": 100.0}
    return {version: 100 * weight / total for version, weight in weights.items()}


def _within(rows: Sequence[Row], regions: Mapping[str, Any]) -> dict[str, float]:
    """Percent by instance, of rows that are of one version."""
    levels: dict[int, list[Row]] = {}
    for row in rows:
        if row["state"] not in NOT_COUNTED:
            priority = regions.get(row["region"], {}).get("priority", 1)
            levels.setdefault(priority, []).append(row)
    ordered = [levels[priority] for priority in sorted(levels)]
    loads = level_loads([_level(members) for members in ordered])
    shares: dict[str, float] = {}
    for members, load, panic in zip(ordered, loads.healthy, loads.panic, strict=True):
        takers = [row for row in members if row["state"] == "healthy" or (panic and row["state"] in KNOWN_TO_ANSWER)]
        total = sum(row["weight"] for row in takers)
        shares |= {row["id"]: load * row["weight"] / total for row in takers if total}
    return shares


def _level(members: Sequence[Row]) -> Level:
    states = [row["state"] for row in members]
    return Level(total=len(states), healthy=states.count("healthy"), excluded=states.count("starting"))
