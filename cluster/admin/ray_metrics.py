"""The main series once more through Ray's own metrics: they appear on the Ray metrics endpoint of the Controller's node, and
so in the Prometheus and Grafana that the Ray dashboard is set up with, as `ray_swiftclaw_…`.

Not the place to look for everything: histograms and the rest are on the admin port (cluster/admin/prometheus.py). Costs
nothing on the request path, because the Controller tells them once a second.
"""

from __future__ import annotations

import time
from typing import Any

from ray.util.metrics import Counter, Gauge

from cluster.admin.prometheus import CIRCUITS, Gauges
from cluster.telemetry.tally import LABELS
from cluster.telemetry.totals import MetricTotals


class RayMetrics:
    """Counters are told by what was added, gauges as they are."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], float] = {}
        self._shown: set[tuple[str, ...]] = set()
        self._requests = Counter(
            "swiftclaw_requests_total", "Requests answered by an instance, or refused (instance empty), by status code.",
            (*LABELS, "code"),
        )  # fmt: skip
        self._seconds = Counter("swiftclaw_request_seconds_total", "Time that answered requests took, together.", LABELS)
        self._p95 = Gauge("swiftclaw_request_duration_p95_ms", "95th percentile of the last minute.", LABELS)
        self._active = Gauge("swiftclaw_active_connections", "Requests in flight.", LABELS)
        self._up = Gauge("swiftclaw_instance_up", "1 when it may take requests.", LABELS)
        self._cpu = Gauge("swiftclaw_instance_cpu_percent", "Of one core.", LABELS)
        self._circuit = Gauge("swiftclaw_circuit_state", "0 closed, 1 open, 2 half-open.", LABELS)
        self._queued = Gauge("swiftclaw_queued_requests", "Requests that wait for a place on an instance.", ("agent",))
        self._weight = Gauge("swiftclaw_version_weight", "Percent of the traffic that a version gets.", ("agent", "version"))

    def tell(self, ledger: MetricTotals, gauges: Gauges) -> None:
        for key, totals in ledger.totals.items():
            for code, count in totals.codes.items():
                self._grown(self._requests, (*LABELS, "code"), (*key, str(code)), count)
            self._grown(self._seconds, LABELS, key, totals.duration_sum_s)
        for (agent, code), count in ledger.refusals.items():
            self._grown(self._requests, (*LABELS, "code"), (agent, "", "", "", str(code)), count)
        for agent in gauges.agents():
            self._queued.set(ledger.queued(agent), {"agent": agent})
        for agent, version, percent in gauges.weights():
            self._weight.set(percent, {"agent": agent, "version": version})
        self._instances(ledger, gauges)

    def _instances(self, ledger: MetricTotals, gauges: Gauges) -> None:
        now, present = time.monotonic(), set()
        for row in gauges.rows():
            tags = dict(zip(LABELS, row.key, strict=True))
            present.add(row.key)
            self._active.set(ledger.active(row.key), tags)
            self._up.set(int(row.state == "healthy"), tags)
            self._circuit.set(CIRCUITS[row.circuit or "closed"], tags)
            self._p95.set(ledger.recent(row.key, now).p95_ms or 0.0, tags)
            if row.cpu_percent is not None:
                self._cpu.set(row.cpu_percent, tags)
        for key in self._shown - present:  # Ray keeps the last value of a series: let it not be one of life
            tags = dict(zip(LABELS, key, strict=True))
            for gauge in (self._active, self._up, self._cpu, self._p95):
                gauge.set(0, tags)
        self._shown = {*present}

    def _grown(self, counter: Any, labels: tuple[str, ...], values: tuple[str, ...], total: float) -> None:
        known = (counter.info["name"], *values)
        added = total - self._told.get(known, 0.0)
        if added > 0:
            counter.inc(added, dict(zip(labels, values, strict=True)))
            self._told[known] = total
