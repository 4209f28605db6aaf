"""The dashboard's data for one agent: a frame of current values per second, shared by all viewers, and the history."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.admin.views import Views
from cluster.instance_state import HEALTHY
from cluster.telemetry.history import COLUMNS
from cluster.telemetry.tally import Key
from cluster.view import ClusterView
from policies.regions.distance import Distances


class Live:
    """Builds frames from one `ClusterView`."""

    def __init__(self, view: ClusterView, views: Views) -> None:
        self._view, self._views = view, views
        self._frames: dict[str, tuple[float, dict[str, Any]]] = {}  # by agent: the last frame, and when it was built

    def history(self, agent: str, window_s: float, points: int, columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
        """Series of instances (removed ones included), of refused requests, and of traffic shares."""
        history = self._view.history.read(agent, time.time(), window_s, points, columns)
        return {
            "agent": agent,
            "step_s": history.window.step_s,
            "times": history.window.times,
            "instances": [
                {"id": instance, "version": version, "region": region, **values}
                for (_, version, region, instance), values in sorted(history.instances.items(), key=lambda row: _order(row[0]))
            ],
            "refused": dict(history.refusals),
            "weights": dict(history.weights),
        }

    def now(self, agent: str) -> dict[str, Any]:
        """The current frame; built at most once a second."""
        built_at, frame = self._frames.get(agent, (0.0, {}))
        now = time.monotonic()
        if now - built_at > 0.9 or not frame:
            frame = self._frame(agent)
            self._frames[agent] = (now, frame)
        return frame

    def _frame(self, agent: str) -> dict[str, Any]:
        view = self._view
        load = self._views.load(agent)
        instances = self._views.instances(agent)  # those in a crash loop at the end: no record, no load
        records = view.registry.of(agent)
        history = view.history.read(agent, time.time(), 5, 5, ("requests",)).instances
        for instance in instances[len(records) :]:
            instance["window_requests"] = instance["share"] = instance["rate"] = 0
        for instance, share, record in zip(instances[: len(records)], load["instances"], records, strict=True):
            counts = [count for count in history.get(record.key, {}).get("requests", []) if count is not None]
            instance["window_requests"], instance["share"] = share["requests"], share["share"]
            instance["rate"] = round(sum(counts) / len(counts), 2) if counts else 0.0
        described = self._views.agent(agent)
        for version in described["versions"]:
            own = [instance["rate"] for instance in instances if instance["version"] == version["version"]]
            version["rate"] = round(sum(own), 2)
        return {
            "at": round(time.time(), 3),
            "window_s": load["window_s"],
            "total": load["total"],
            "agent": described,
            "agents": list(view.settings.agents),
            "gateways": [hello.settings.region for hello, _, _ in view.gateways.present.values() if not hello.worker_of],
            "desired_gateways": sum(gateway.replicas for gateway in view.settings.gateways),
            "instances": instances,
            "limits": self._limits(agent),
            "distances": self._distances(agent),
            "last_event": view.events.last,
            "warnings": list(view.placement.warnings),
        }

    def _limits(self, agent: str) -> dict[str, Any]:
        view, settings = self._view, self._view.settings.agents[agent]
        totals, limit = view.totals, settings.rate_limit
        healthy = sum(record.state == HEALTHY for record in view.registry.of(agent))
        return {
            "max_connections": settings.limits.max_connections,
            "max_connections_per_instance": settings.limits.max_connections_per_instance,
            "capacity": healthy * settings.limits.max_connections_per_instance,
            "in_flight": sum(record.in_flight for record in view.registry.of(agent)),
            "queued": totals.queued(agent),
            "refused": totals.refused(agent) - totals.rate_limited(agent),
            "rate_limited": totals.rate_limited(agent),
            "retries": totals.retries.get(agent, 0),
            "rate_limit": {"requests": limit.requests, "window_s": limit.window_s} if limit.enabled else None,
        }

    def _distances(self, agent: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Round-trip milliseconds from each gateway's region to each of the agent's, and their source (configured, measured
        or estimated); both are null when unknown."""
        settings = self._view.settings
        distances = Distances(settings.distances_ms)
        for (one, other), ms in self._view.totals.measured().items():
            distances.measured(one, other, ms)
        origins = dict.fromkeys([*(gateway.region for gateway in settings.gateways), *settings.agents[agent].regions])
        return {one: {other: _far(distances, one, other) for other in settings.agents[agent].regions} for one in origins}


def _far(distances: Distances, one: str, other: str) -> dict[str, Any]:
    ms, source = distances.lookup(one, other)
    return {"ms": None if ms is None else round(ms, 1), "source": source}


def _order(key: Key) -> tuple[int, str]:
    number = key[3].rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, key[1])
