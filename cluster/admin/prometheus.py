"""The ledger and the Controller's gauges as Prometheus text: the whole cluster on one scrape target.

Labels are bounded: agents, versions and regions as configured, instances by their reused names, status codes by number. A
request that no instance got has an empty `instance`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cluster.telemetry.tally import BUCKETS_S, LABELS, ROUTING_BUCKETS_S, Key
from cluster.telemetry.totals import RATE_LIMITED, MetricTotals

CIRCUITS = {"closed": 0, "open": 1, "half-open": 2}
AGENT = ("agent",)
PLACE = ("agent", "version", "region")


@dataclass(frozen=True)
class InstanceRow:
    """One instance as the registry has it."""

    key: Key
    state: str
    cpu_percent: float | None = None
    circuit: str | None = None  # None: no breaker


class Gauges(Protocol):
    """What the Controller knows besides the counts."""

    def agents(self) -> Iterable[str]: ...

    def rows(self) -> Iterable[InstanceRow]: ...

    def desired(self) -> Iterable[tuple[str, str, str, int]]:
        """(agent, version, region, instances that should run)."""

    def weights(self) -> Iterable[tuple[str, str, float]]:
        """(agent, version, percent of the traffic)."""


def exposition(ledger: MetricTotals, gauges: Gauges) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collected(ledger, gauges))
    return generate_latest(registry)


class _Collected:
    """The shape that prometheus_client asks for."""

    def __init__(self, ledger: MetricTotals, gauges: Gauges) -> None:
        self._ledger, self._gauges = ledger, gauges

    def collect(self) -> Iterator[Metric]:
        yield from _requests(self._ledger)
        yield from _agents(self._ledger, self._gauges)
        yield from _instances(self._ledger, self._gauges)


def _requests(ledger: MetricTotals) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "swiftclaw_requests", "Requests answered by an instance, or refused (instance empty), by status code.",
        labels=(*LABELS, "code"),
    )  # fmt: skip
    duration = HistogramMetricFamily(
        "swiftclaw_request_duration_seconds", "From the request's arrival to the end of its answer.", labels=LABELS
    )
    first = HistogramMetricFamily(
        "swiftclaw_time_to_first_byte_seconds", "From the request's arrival to the head of its answer.", labels=LABELS
    )
    routing = HistogramMetricFamily(
        "swiftclaw_routing_seconds", "From the request's admission to the choice of its instance, waiting in line included.",
        labels=LABELS,
    )  # fmt: skip
    for key, totals in ledger.totals.items():
        for code, count in sorted(totals.codes.items()):
            requests.add_metric((*key, str(code)), count)
        duration.add_metric(key, _cumulative(BUCKETS_S, totals.durations), totals.duration_sum_s)
        first.add_metric(key, _cumulative(BUCKETS_S, totals.first_bytes), totals.first_byte_sum_s)
        routing.add_metric(key, _cumulative(ROUTING_BUCKETS_S, totals.routings), totals.routing_sum_s)
    for (agent, code), count in sorted(ledger.refusals.items()):
        requests.add_metric((agent, "", "", "", str(code)), count)
    yield from (requests, duration, first, routing)


def _agents(ledger: MetricTotals, gauges: Gauges) -> Iterator[Metric]:
    limited = CounterMetricFamily("swiftclaw_rate_limited", "Requests of users who had asked too often.", labels=AGENT)
    retries = CounterMetricFamily(
        "swiftclaw_retries",
        "Requests sent again after an attempt that failed; not those that found nobody there.",
        labels=AGENT,
    )
    queued = GaugeMetricFamily("swiftclaw_queued_requests", "Requests that wait for a place on an instance.", labels=AGENT)
    weights = GaugeMetricFamily(
        "swiftclaw_version_weight", "Percent of the traffic that a version gets.", labels=("agent", "version")
    )
    desired = GaugeMetricFamily("swiftclaw_desired_instances", "Instances that should run.", labels=PLACE)
    for agent in gauges.agents():
        limited.add_metric((agent,), ledger.refusals.get((agent, RATE_LIMITED), 0))
        retries.add_metric((agent,), ledger.retries.get(agent, 0))
        queued.add_metric((agent,), ledger.queued(agent))
    for agent, version, percent in gauges.weights():
        weights.add_metric((agent, version), percent)
    for agent, version, region, count in gauges.desired():
        desired.add_metric((agent, version, region), count)
    yield from (limited, retries, queued, weights, desired)


def _instances(ledger: MetricTotals, gauges: Gauges) -> Iterator[Metric]:
    active = GaugeMetricFamily("swiftclaw_active_connections", "Requests in flight.", labels=LABELS)
    up = GaugeMetricFamily("swiftclaw_instance_up", "1 when it may take requests.", labels=LABELS)
    cpu = GaugeMetricFamily("swiftclaw_instance_cpu_percent", "Of one core.", labels=LABELS)
    circuit = GaugeMetricFamily("swiftclaw_circuit_state", "0 closed, 1 open, 2 half-open.", labels=LABELS)
    states = GaugeMetricFamily("swiftclaw_instances", "Instances by state.", labels=(*PLACE, "state"))
    counted: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for agent, version, region, _ in gauges.desired():
        counted[agent, version, region, "healthy"] = 0  # said, not left out: an alert compares it
    for row in gauges.rows():
        active.add_metric(row.key, ledger.active(row.key))
        up.add_metric(row.key, int(row.state == "healthy"))
        if row.cpu_percent is not None:
            cpu.add_metric(row.key, row.cpu_percent)
        if row.circuit is not None:
            circuit.add_metric(row.key, CIRCUITS[row.circuit])
        agent, version, region, _ = row.key
        counted[agent, version, region, row.state] += 1
    for labels, count in sorted(counted.items()):
        states.add_metric(labels, count)
    yield from (active, up, cpu, circuit, states)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    rows, total = [], 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts or (0,) * (len(bounds) + 1), strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows
