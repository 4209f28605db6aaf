"""What the Controller knows, in the shapes that the admin port answers with. All sync and without side effects.

Made to be asked often: 200 instances cost milliseconds. What the dashboard shows besides: cluster/admin/live.py.
"""

from __future__ import annotations

import time
from typing import Any

from cluster.desired.rollout import Rollout
from cluster.fleet.registry import InstanceRecord
from cluster.instance_state import DRAINING, EJECTED, HEALTHY, STARTING, STOPPED, UNHEALTHY
from cluster.telemetry.tally import Key
from cluster.telemetry.totals import WINDOW_S, RecentStats
from cluster.view import ClusterView
from policies.weighted import weights_of

HEALTH_OF = {
    STARTING: "unknown",
    HEALTHY: "healthy",
    UNHEALTHY: "unhealthy",
    EJECTED: "unhealthy",
    DRAINING: "healthy",
    STOPPED: "unknown",
}


class Views:
    """Over one Controller."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def known(self, agent: str) -> bool:
        return agent in self._view.settings.agents

    def status(self) -> dict[str, Any]:
        """The cluster at a glance: what `swiftclaw up` waits for."""
        view = self._view
        return {
            "agents": self.agents(),
            "gateways": [
                {
                    "id": hello.gateway,
                    "region": hello.settings.region,
                    "host": hello.settings.host,
                    "port": hello.settings.port,
                    "tls": hello.settings.tls is not None,
                    "node": hello.node,
                    "pid": hello.pid,
                    "current": view.gateways.is_current(hello.gateway),
                }
                for hello, _, _ in view.gateways.present.values()
            ],
            "desired_gateways": sum(gateway.replicas for gateway in view.settings.gateways),
            "apps": {name: vars(app) for name, app in sorted(view.placement.observed.items())},
            "problems": dict(view.placement.problems),
            "warnings": list(view.placement.warnings),
        }

    def agents(self) -> list[dict[str, Any]]:
        return [self.agent(name) for name in self._view.settings.agents]

    def agent(self, name: str) -> dict[str, Any]:
        view = self._view
        settings = view.settings.agents[name]
        records = view.registry.of(name)
        rollout = view.rollouts.rollouts[name]
        versions = sorted({*(one.name for one in rollout.versions), *(record.registration.version for record in records)})
        weights = self._version_weights(name)
        counts = [view.totals.requests(record.key) for record in records]
        return {
            "name": name,
            "strategy": settings.load_balancing.strategy,
            "session_affinity": view.keeps_sessions(settings),
            "versions": [
                {
                    "version": version,
                    "role": _role(version, rollout),
                    "weight": weights.get(version, 0),
                    "instances": sum(record.registration.version == version for record in records),
                    **self._of_version(name, version),
                }
                for version in versions
            ],
            "regions": {
                region: {
                    "instances": wanted.instances,
                    "healthy": sum(
                        record.state == HEALTHY
                        and record.registration.region == region
                        and record.registration.version == rollout.stable.name  # as `instances`; the others are in `versions`
                        for record in records
                    ),
                    "priority": wanted.priority,
                    **self._scaled(name, region, records),
                }
                for region, wanted in settings.regions.items()
            },
            "rollout": {**_rollout(rollout), "analysis": view.analysis.notes.get(name, "")},
            "requests": sum(requests for requests, _ in counts) + view.totals.refused(name),
            "errors": sum(errors for _, errors in counts)
            + view.totals.refused(name)
            - view.totals.rate_limited(name),  # those are no errors of the agent's
        }

    def _of_version(self, agent: str, version: str) -> dict[str, Any]:
        """Its instances that should be and that are healthy, and its requests of the last minute."""
        records = self._view.registry.of(agent, version)
        wanted = (count for name, one, _, count in self._view.desired_instances() if (name, one) == (agent, version))
        return {
            "desired": sum(wanted),
            "healthy": sum(record.state == HEALTHY for record in records),
            **self._together([record.key for record in records], time.monotonic()),
        }

    def _scaled(self, name: str, region: str, records: list[InstanceRecord]) -> dict[str, Any]:
        """The count of the stable version: how many there should be, how many there are, why it was last changed."""
        settings = self._view.settings.agents[name]
        reason, at = self._view.autoscaling.last(name, region)
        own = [r for r in records if r.registration.version == settings.version and r.registration.region == region]
        return {
            "desired": settings.regions[region].instances,
            "least": self._view.autoscaling.least(settings, region),
            "actual": sum(not record.draining for record in own),
            "reason": reason,
            "at": at,
        }

    def instances(self, agent: str) -> list[dict[str, Any]]:
        records = self._view.registry.of(agent)
        named = self._view.settings.agents[agent].load_balancing.weighted
        weights = weights_of(named, (record.id for record in records))
        now = time.monotonic()
        return [self._instance(record, weights[record.id], self._view.totals.recent(record.key, now)) for record in records]

    def _instance(self, record: InstanceRecord, weight: float, recent: RecentStats) -> dict[str, Any]:
        view = self._view
        known = record.registration
        requests, errors = view.totals.requests(record.key)
        return {
            "id": record.id,
            "version": known.version,
            "region": known.region,
            "node": known.node,
            "state": record.state,
            "health": {
                "status": HEALTH_OF[record.state],
                "reason": record.held or record.reason,
                "checked_at": record.checked_at,
            },
            "circuit": view.breakers.state(known.replica, time.monotonic()),
            "weight": weight,
            "connections": record.in_flight,
            "active_connections": view.totals.active(record.key),
            "requests": requests,
            "errors": errors,
            "error_rate": recent.error_rate,
            "mean_ms": recent.mean_ms,
            "p50_ms": recent.p50_ms,
            "p95_ms": recent.p95_ms,
            "p99_ms": recent.p99_ms,
            "cpu": record.cpu_percent,
            "uptime_s": round(time.time() - known.started_at, 1),
            "pid": known.pid,
        }

    def load(self, agent: str) -> dict[str, Any]:
        now = time.monotonic()
        rows = [(record, self._view.totals.recent(record.key, now)) for record in self._view.registry.of(agent)]
        total = sum(recent.requests for _, recent in rows)
        return {
            "agent": agent,
            "window_s": int(WINDOW_S),
            "total": total,
            "instances": [
                {
                    "id": record.id,
                    "version": record.registration.version,
                    "region": record.registration.region,
                    "requests": recent.requests,
                    "share": round(100 * recent.requests / total, 2) if total else 0.0,
                    "connections": record.in_flight,
                    "mean_ms": recent.mean_ms,
                    "error_rate": recent.error_rate,
                }
                for record, recent in rows
            ],
        }

    def _together(self, keys: list[Key], now: float) -> dict[str, Any]:
        recent = self._view.totals.recently(keys, now)
        return {**vars(recent), "error_rate": recent.error_rate}

    def _version_weights(self, agent: str) -> dict[str, float]:
        return {version: percent for name, version, percent in self._view.weights() if name == agent}


def _role(version: str, rollout: Rollout) -> str:
    """stable, canary, or leaving: it gets nothing new."""
    if version == rollout.stable.name:
        return "stable"
    return "canary" if rollout.canary is not None and version == rollout.canary.version.name else "leaving"


def _rollout(rollout: Rollout) -> dict[str, Any]:
    """`canary` null: there is none. `target`: the share that it gets when it has the instances for it."""
    canary = rollout.canary
    return {
        "stable": rollout.stable.name,
        "canary": canary.version.name if canary else None,
        "percent": canary.percent if canary else 0.0,
        "target": canary.target if canary else 0.0,
        "changed_at": canary.changed_at if canary else None,
        "paused": canary.paused if canary else False,
        "note": canary.note if canary else "",
        "last": rollout.last,
    }
