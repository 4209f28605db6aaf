"""What must be so again, by itself, once the faults are over and the load has ended."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from tests.campaign.cluster import AGENT, REGIONS, Cluster

SETTLE_S = 75.0
CHECKED_S = 6.0  # the oldest health check of an instance


def unsettled(status: dict[str, Any], instances: list[dict[str, Any]], gateways: int, now: float) -> list[str]:
    """What is not as it should be, by /api/status and the rows of the instances; `now`: seconds since the epoch."""
    agent = next(one for one in status["agents"] if one["name"] == AGENT)
    return [*_instances(instances, agent["rollout"]["stable"], now), *_agent(agent), *_fleet(status, gateways)]


def _instances(rows: list[dict[str, Any]], stable: str, now: float) -> list[str]:
    wrong = []
    for row in rows:
        age = now - (row["health"]["checked_at"] or 0)
        open_now = row["connections"] or row["active_connections"]
        wrong += [f"{row['id']} is {row['state']}"] if row["state"] != "healthy" else []
        wrong += [f"{row['id']}: circuit {row['circuit']}"] if row["circuit"] != "closed" else []
        wrong += [f"{row['id']}: no health check for {age:.0f} s"] if age > CHECKED_S else []
        wrong += [f"{row['id']}: version {row['version']}, not {stable}"] if row["version"] != stable else []
        wrong += [f"{row['id']}: {row['connections']} / {row['active_connections']} in flight"] if open_now else []
    return wrong


def _agent(agent: dict[str, Any]) -> list[str]:
    wrong = []
    for region, counts in agent["regions"].items():
        if counts["healthy"] != counts["instances"]:
            wrong.append(f"{region}: {counts['healthy']} of {counts['instances']} instances are healthy")
    if agent["rollout"]["canary"] or any(one["role"] == "leaving" for one in agent["versions"]):
        wrong.append(f"versions: {[(one['version'], one['role']) for one in agent['versions']]}")
    return wrong


def _fleet(status: dict[str, Any], gateways: int) -> list[str]:
    wrong = []
    if len(status["gateways"]) != gateways or not all(one["current"] for one in status["gateways"]):
        wrong.append(f"{sum(one['current'] for one in status['gateways'])} of {gateways} gateways are current")
    wrong += [f"problem: {name}: {problem}" for name, problem in status["problems"].items()]
    wrong += [f"{name}: {app['status']}" for name, app in status["apps"].items() if app["status"] != "RUNNING"]
    return wrong


def tidy(cluster: Cluster) -> list[tuple[str, int, str]]:
    """What an operator would do: end a canary, bring a lost Ray node back. The commands, their exit status and output."""
    done = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        if cluster.rollout()["canary"]:
            done.append(("rollback", *cluster.run("rollback", AGENT, "--timeout", "40", timeout=50)))
    if cluster.nodes().keys() != set(REGIONS):
        cluster.start_lost_nodes()
        done.append(("up", *cluster.run("up", "--timeout", "60", timeout=75)))
    return done


def wait_until_settled(cluster: Cluster, within_s: float = SETTLE_S) -> list[str]:
    """What is still not as it should be after that time."""
    ends, wrong = time.monotonic() + within_s, ["nothing has been read"]
    while wrong and time.monotonic() < ends:
        time.sleep(0.5)
        try:
            wrong = unsettled(cluster.api("/api/status"), cluster.instances(), cluster.settings.gateway_processes, time.time())
        except (OSError, ValueError, KeyError, StopIteration) as error:
            wrong = [f"the admin port: {error!r}"]
    return wrong
