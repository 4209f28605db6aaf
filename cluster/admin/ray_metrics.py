"""The main series, exported through Ray's own metrics as `ray_swiftclaw_…`.

They appear at the Ray metrics endpoint of the Controller's node, and therefore in the Prometheus and Grafana that the Ray
dashboard uses. Not complete: histograms and the remaining series are on the admin port (cluster/admin/prometheus.py). The
Controller exports them every few seconds, so they cost nothing on the request path.
"""

from __future__ import annotations

import time
from typing import Any

from ray.util.metrics import Counter, Gauge

from cluster.admin.prometheus import (
    ACTIVE_HELP,
    CIRCUIT_HELP,
    CIRCUITS,
    CPU_HELP,
    QUEUED_HELP,
    REQUESTS_HELP,
    UP_HELP,
    WEIGHT_HELP,
)
from cluster.instance_state import HEALTHY
from cluster.telemetry.tally import LABELS
from cluster.telemetry.totals import MetricTotals
from cluster.view import ClusterView


class RayMetrics:
    """Increments counters by what was added since the last export; sets gauges to their current value."""

    def __init__(self) -> None:
        self._exported: dict[tuple[str, ...], float] = {}  # by counter and label values: the total so far
        self._present: set[tuple[str, ...]] = set()  # instances at the last export
        self._requests = Counter("swiftclaw_requests_total", REQUESTS_HELP, (*LABELS, "code"))
        self._seconds = Counter("swiftclaw_request_seconds_total", "Total duration of all completed requests.", LABELS)
        self._p95 = Gauge(
            "swiftclaw_request_duration_p95_ms", "95th percentile of the request duration over the last minute.", LABELS
        )
        self._active = Gauge("swiftclaw_active_connections", ACTIVE_HELP, LABELS)
        self._up = Gauge("swiftclaw_instance_up", UP_HELP, LABELS)
        self._cpu = Gauge("swiftclaw_instance_cpu_percent", CPU_HELP, LABELS)
        self._circuit = Gauge("swiftclaw_circuit_state", CIRCUIT_HELP, LABELS)
        self._queued = Gauge("swiftclaw_queued_requests", QUEUED_HELP, ("agent",))
        self._weight = Gauge("swiftclaw_version_weight", WEIGHT_HELP, ("agent", "version"))

    def export(self, view: ClusterView) -> None:
        self._export_counters(view.totals)
        for agent in view.settings.agents:
            self._queued.set(view.totals.queued(agent), {"agent": agent})
        for agent, version, percent in view.weights():
            self._weight.set(percent, {"agent": agent, "version": version})
        self._export_instances(view)

    def _export_counters(self, totals: MetricTotals) -> None:
        for key, counts in totals.instances.items():
            for code, count in counts.codes.items():
                self._increase(self._requests, (*LABELS, "code"), (*key, str(code)), count)
            self._increase(self._seconds, LABELS, key, counts.duration_sum_s)
        for (agent, code), count in totals.refusals.items():
            self._increase(self._requests, (*LABELS, "code"), (agent, "", "", "", str(code)), count)

    def _export_instances(self, view: ClusterView) -> None:
        now, present = time.monotonic(), set()
        for row in view.instances():
            tags = dict(zip(LABELS, row.key, strict=True))
            present.add(row.key)
            self._active.set(view.totals.active(row.key), tags)
            self._up.set(int(row.state == HEALTHY), tags)
            self._circuit.set(CIRCUITS[row.circuit or "closed"], tags)
            self._p95.set(view.totals.recent(row.key, now).p95_ms or 0.0, tags)
            if row.cpu_percent is not None:
                self._cpu.set(row.cpu_percent, tags)
        for key in self._present - present:  # Ray keeps exporting a gauge's last value: reset those of removed instances
            tags = dict(zip(LABELS, key, strict=True))
            for gauge in (self._active, self._up, self._cpu, self._p95):
                gauge.set(0, tags)
        self._present = {*present}

    def _increase(self, counter: Any, labels: tuple[str, ...], values: tuple[str, ...], total: float) -> None:
        series = (counter.info["name"], *values)
        added = total - self._exported.get(series, 0.0)
        if added > 0:
            counter.inc(added, dict(zip(labels, values, strict=True)))
            self._exported[series] = total
