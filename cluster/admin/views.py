"""The cluster's state as the JSON objects of the admin API. Sync and without side effects.

Cheap enough to be called often: 200 instances take milliseconds. What only the dashboard needs is in cluster/admin/live.py.
"""

from __future__ import annotations

import time
from typing import Any

from cluster.config import AgentSettings
from cluster.desired.autoscaling import bounds
from cluster.desired.rollout_transitions import Rollout
from cluster.fleet.crash_loops import CrashSlot
from cluster.fleet.registry import InstanceRecord
from cluster.instance_state import CRASH_LOOP, DRAINING, EJECTED, HEALTHY, STARTING, STOPPED, UNHEALTHY
from cluster.telemetry.tally import Key
from cluster.telemetry.totals import WINDOW_S
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
    """Builds the objects from one `ClusterView`."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def has(self, agent: str) -> bool:
        return agent in self._view.settings.agents

    def status(self) -> dict[str, Any]:
        """Agents, gateways and Serve apps at a glance; `swiftclaw up` waits for it to be complete."""
        view, now = self._view, time.monotonic()
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
                    "worker_of": hello.worker_of or None,
                    "current": view.gateways.is_current(hello.gateway),
                }
                for hello, _, _ in view.gateways.present.values()
            ],
            "desired_gateways": sum(gateway.replicas for gateway in view.settings.gateways),
            "apps": {name: vars(app) for name, app in sorted(view.placement.observed.items())},
            "problems": dict(view.placement.problems),
            "crash_loops": [
                {
                    "agent": slot.agent,
                    "version": slot.version,
                    "region": slot.region,
                    "id": slot.id,
                    "crashes": slot.crashes,
                    "starts_in_s": round(max(0.0, slot.due - now), 1),
                    "reason": slot.reason,
                    "message": slot.describe(now),
                }
                for slot in view.crash_loops.loops()
            ],
            "warnings": list(view.placement.warnings),
        }

    def agents(self) -> list[dict[str, Any]]:
        return [self.agent(name) for name in self._view.settings.agents]

    def agent(self, name: str) -> dict[str, Any]:
        view = self._view
        settings, rollout, records = view.settings.agents[name], view.rollouts.shown(name), view.registry.of(name)
        versions = sorted({*(one.name for one in rollout.versions), *(record.registration.version for record in records)})
        counts = [view.totals.requests(record.key) for record in records]
        refused, limited = view.totals.refused(name), view.totals.rate_limited(name)
        return {
            "name": name,
            "strategy": settings.load_balancing.strategy,
            "session_affinity": view.keeps_sessions(settings),
            "versions": [self._version_row(name, version, rollout) for version in versions],
            "regions": {region: self._region_row(settings, region, rollout, records) for region in settings.regions},
            "rollout": self._rollout_row(name, rollout),
            "requests": sum(requests for requests, _ in counts) + refused,
            "errors": sum(errors for _, errors in counts) + refused - limited,  # a rate limit is not the agent's error
        }

    def _version_row(self, agent: str, version: str, rollout: Rollout) -> dict[str, Any]:
        """Its share, its instances, and its requests of the last minute."""
        view, records = self._view, self._view.registry.of(agent, version)
        desired = (count for name, one, _, count in view.desired_instances() if (name, one) == (agent, version))
        recent = view.totals.recently([record.key for record in records], time.monotonic())
        weights = {one: percent for name, one, percent in view.weights() if name == agent}
        return {
            "version": version,
            "role": _role(version, rollout),
            "weight": weights.get(version, 0),
            "instances": len(records),
            "desired": sum(desired),
            "healthy": sum(record.state == HEALTHY for record in records),
            **vars(recent),
            "error_rate": recent.error_rate,
        }

    def _region_row(
        self, settings: AgentSettings, region: str, rollout: Rollout, records: list[InstanceRecord]
    ) -> dict[str, Any]:
        """The stable version's instances in the region, and why their number last changed. A canary's are in `versions`."""
        wanted, autoscaling = settings.regions[region], self._view.autoscaling
        reason, changed_at = autoscaling.last(settings.name, region)
        local = [record for record in records if record.registration.region == region]
        return {
            "instances": wanted.instances,
            "healthy": sum(r.state == HEALTHY and r.registration.version == rollout.stable.name for r in local),
            "priority": wanted.priority,
            "desired": wanted.instances,
            "least": autoscaling.least(settings, region),
            "bounds": None if settings.scaling is None else bounds(settings, region),
            "actual": sum(not r.draining and r.registration.version == settings.version for r in local),
            "reason": reason,
            "at": changed_at,
        }

    def _rollout_row(self, agent: str, rollout: Rollout) -> dict[str, Any]:
        """`canary` is null without one. `target`: its share once enough of its instances are healthy."""
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
            "analysis": self._view.analysis.notes.get(agent, ""),
        }

    def instances(self, agent: str) -> list[dict[str, Any]]:
        records = self._view.registry.of(agent)
        configured = self._view.settings.agents[agent].load_balancing.weighted
        weights = weights_of(configured, (record.id for record in records))
        now = time.monotonic()
        return [
            *(self._instance_row(record, weights[record.id], now) for record in records),
            *(self._crash_loop_row(slot, now) for slot in self._view.crash_loops_of(agent)),
        ]

    def _crash_loop_row(self, slot: CrashSlot, now: float) -> dict[str, Any]:
        """An instance without a process, with the fields of the others."""
        return {
            "id": slot.id,
            "version": slot.version,
            "region": slot.region,
            "node": None,
            "state": CRASH_LOOP,
            "health": {"status": "unhealthy", "reason": slot.describe(now), "checked_at": None},
            "circuit": None,
            "weight": 0.0,
            "connections": 0,
            "active_connections": 0,
            **self._traffic(slot.key, now),
            "cpu": None,
            "uptime_s": None,
            "pid": None,
            "crashes": slot.crashes,
            "starts_in_s": round(max(0.0, slot.due - now), 1),
        }

    def _traffic(self, key: Key, now: float) -> dict[str, Any]:
        """The fields of a row that count its requests."""
        (requests, errors), recent = self._view.totals.requests(key), self._view.totals.recent(key, now)
        return {
            "requests": requests,
            "errors": errors,
            "error_rate": recent.error_rate,
            "mean_ms": recent.mean_ms,
            "p50_ms": recent.p50_ms,
            "p95_ms": recent.p95_ms,
            "p99_ms": recent.p99_ms,
        }

    def _instance_row(self, record: InstanceRecord, weight: float, now: float) -> dict[str, Any]:
        registration = record.registration
        return {
            "id": record.id,
            "version": registration.version,
            "region": registration.region,
            "node": registration.node,
            "state": record.state,
            "health": {
                "status": HEALTH_OF[record.state],
                "reason": record.held or record.reason,
                "checked_at": record.checked_at,
            },
            "circuit": self._view.breakers.state(registration.replica, now),
            "weight": weight,
            "connections": record.in_flight,
            "active_connections": self._view.totals.active(record.key),
            **self._traffic(record.key, now),
            "cpu": record.cpu_percent,
            "uptime_s": round(max(0.0, time.time() - registration.started_at), 1),
            "pid": registration.pid,
            "crashes": registration.crashes,
            "starts_in_s": None,
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


def _role(version: str, rollout: Rollout) -> str:
    """stable, canary, or leaving: its instances drain and receive no new sessions."""
    if version == rollout.stable.name:
        return "stable"
    return "canary" if rollout.canary is not None and version == rollout.canary.version.name else "leaving"
