"""What the dashboard shows of one agent: everything of now, once a second for all who watch, and the history behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.admin.views import Views
from cluster.telemetry.history import COLUMNS
from cluster.telemetry.tally import Key
from cluster.view import ClusterView
from policies.load.distance import Distances

REFUSED = ("requests", "errors", "connections")  # in the series of what no instance got: see `refusals_of`
WEIGHT = ("connections",)  # in the series of a version's weight: see `weight_of`


class Live:
    """Over one Controller."""

    def __init__(self, view: ClusterView, views: Views) -> None:
        self._view, self._views = view, views
        self._made: dict[str, tuple[float, dict[str, Any]]] = {}  # by agent: made when

    def history(self, agent: str, window_s: float, points: int, columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
        """Series by instance, gone ones too, and what no instance got: see cluster/telemetry/history.py."""
        history, now = self._view.history, time.time()
        read = history.read(agent, now, window_s, points, columns)
        instances = {key: values for key, values in read.rows.items() if key[3]}
        weights = history.read(agent, now, window_s, points, WEIGHT).rows
        unknown = {name: [None] * len(read.times) for name in REFUSED}
        refused = history.read(agent, now, window_s, points, REFUSED, only=refusals_of(agent)).rows
        requests, limited, queued = refused.get(refusals_of(agent), unknown).values()
        return {
            "agent": agent,
            "step_s": read.step_s,
            "times": read.times,
            "instances": [
                {"id": instance, "version": version, "region": region, **values}
                for (_, version, region, instance), values in sorted(instances.items(), key=lambda row: _order(row[0]))
            ],
            "refused": {"requests": requests, "rate_limited": limited, "queued": queued},
            "weights": {key[1]: values["connections"] for key, values in weights.items() if key[1] and not key[3]},
        }

    def now(self, agent: str) -> dict[str, Any]:
        """All that the dashboard shows of one agent now."""
        made, frame = self._made.get(agent, (0.0, {}))
        now = time.monotonic()
        if now - made > 0.9 or not frame:
            frame = self._frame(agent)
            self._made[agent] = (now, frame)
        return frame

    def _frame(self, agent: str) -> dict[str, Any]:
        view = self._view
        load = self._views.load(agent)
        instances = self._views.instances(agent)
        records = view.registry.of(agent)
        read = view.history.read(agent, time.time(), 5, 5, ("requests",)).rows
        for instance, share, record in zip(instances, load["instances"], records, strict=True):
            seen = [count for count in read.get(record.key, {}).get("requests", []) if count is not None]
            instance["window_requests"], instance["share"] = share["requests"], share["share"]
            instance["rate"] = round(sum(seen) / len(seen), 2) if seen else 0.0
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
            "gateways": [hello.settings.region for hello, _, _ in view.gateways.present.values()],
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
        healthy = sum(record.state == "healthy" for record in view.registry.of(agent))
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
        """Milliseconds from each gateway's region to each of the agent's, and whether they are configured, measured or
        estimated; null twice when nothing is known."""
        settings = self._view.settings
        distances = Distances(settings.distances_ms)
        for (one, other), ms in self._view.totals.measured().items():
            distances.measured(one, other, ms)
        here = dict.fromkeys([*(gateway.region for gateway in settings.gateways), *settings.agents[agent].regions])
        return {one: {other: _far(distances, one, other) for other in settings.agents[agent].regions} for one in here}


def _far(distances: Distances, one: str, other: str) -> dict[str, Any]:
    ms, source = distances.known(one, other)
    return {"ms": None if ms is None else round(ms, 1), "source": source}


def refusals_of(agent: str) -> Key:
    """Under which the history keeps what no instance got: requests, rate-limited ones as errors, the line as connections."""
    return (agent, "", "", "")


def weight_of(agent: str, version: str) -> Key:
    """Under which the history keeps a version's percent of the traffic, as connections."""
    return (agent, version, "", "")


def _order(key: Key) -> tuple[int, str]:
    number = key[3].rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, key[1])
