"""Prometheus text of the whole cluster, on one scrape target: the counts of all gateways and the state of every instance.

Label values are bounded: agents, versions and regions as configured, reused instance names, numeric status codes. A request
that reached no instance has an empty `instance` label. Not for histories: see cluster/telemetry/history.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cluster.instance_state import CRASH_LOOP, HEALTHY
from cluster.telemetry.event_loop import unfinished_tasks
from cluster.telemetry.tally import BUCKETS_S, LABELS, ROUTING_BUCKETS_S
from cluster.telemetry.totals import MetricTotals
from cluster.view import ClusterView
from policies.sessions.moved import CAUSES

CIRCUITS = {"closed": 0, "open": 1, "half-open": 2}
AGENT = ("agent",)
GROUP = ("agent", "version", "region")

# Help texts of the series that Ray's metrics have too (cluster/admin/ray_metrics.py).
REQUESTS_HELP = "Requests by status code. `instance` is empty for requests that reached no instance."
ACTIVE_HELP = "Requests in flight."
UP_HELP = "1 if the instance is healthy and accepts requests, else 0."
CPU_HELP = "CPU usage of the instance's process, in percent of one core."
CIRCUIT_HELP = "State of the circuit breaker: 0 closed, 1 open, 2 half-open."
QUEUED_HELP = "Requests in the wait queue for a free instance."
CRASHES_HELP = "Crashes in a row of an instance in a crash loop; 0 for one that runs."
GATEWAY_TASKS_HELP = "Unfinished asyncio tasks of the gateway's process. It follows the requests in flight."
WEIGHT_HELP = "Share of the agent's traffic that the version receives, in percent."


def exposition(view: ClusterView) -> bytes:
    """All series in Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(view))
    return generate_latest(registry)


class _Collector:
    """The interface that prometheus_client calls."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        yield from _requests(self._view.totals)
        yield from _agents(self._view)
        yield from _instances(self._view)
        yield from _processes(self._view.totals)


def _requests(totals: MetricTotals) -> Iterator[Metric]:
    requests = CounterMetricFamily("swiftclaw_requests", REQUESTS_HELP, labels=(*LABELS, "code"))
    duration = HistogramMetricFamily(
        "swiftclaw_request_duration_seconds", "Time from the request's arrival to the end of its response.", labels=LABELS
    )
    first_byte = HistogramMetricFamily(
        "swiftclaw_time_to_first_byte_seconds", "Time from the request's arrival to its response headers.", labels=LABELS
    )
    routing = HistogramMetricFamily(
        "swiftclaw_routing_seconds", "Time from admission to the choice of an instance, including time in the wait queue.",
        labels=LABELS,
    )  # fmt: skip
    for key, counts in totals.instances.items():
        for code, count in sorted(counts.codes.items()):
            requests.add_metric((*key, str(code)), count)
        duration.add_metric(key, _cumulative(BUCKETS_S, counts.durations), counts.duration_sum_s)
        first_byte.add_metric(key, _cumulative(BUCKETS_S, counts.first_bytes), counts.first_byte_sum_s)
        routing.add_metric(key, _cumulative(ROUTING_BUCKETS_S, counts.routings), counts.routing_sum_s)
    for (agent, code), count in sorted(totals.refusals.items()):
        requests.add_metric((agent, "", "", "", str(code)), count)
    yield from (requests, duration, first_byte, routing)


def _agents(view: ClusterView) -> Iterator[Metric]:
    totals = view.totals
    limited = CounterMetricFamily("swiftclaw_rate_limited", "Requests rejected by a rate limit (status 429).", labels=AGENT)
    retries = CounterMetricFamily(
        "swiftclaw_retries", "Requests retried after a failed attempt. Refused connections are not counted.", labels=AGENT
    )
    moved = CounterMetricFamily(
        "swiftclaw_sessions_moved", "Sessions that lost their instance and continue at another one.", labels=("agent", "cause")
    )
    queued = GaugeMetricFamily("swiftclaw_queued_requests", QUEUED_HELP, labels=AGENT)
    weights = GaugeMetricFamily("swiftclaw_version_weight", WEIGHT_HELP, labels=("agent", "version"))
    desired = GaugeMetricFamily("swiftclaw_desired_instances", "Desired number of instances.", labels=GROUP)
    for agent in view.settings.agents:
        limited.add_metric((agent,), totals.rate_limited(agent))
        retries.add_metric((agent,), totals.retries.get(agent, 0))
        queued.add_metric((agent,), totals.queued(agent))
        for cause in CAUSES:
            moved.add_metric((agent, cause), totals.moved_sessions.get((agent, cause), 0))
    for agent, version, percent in view.weights():
        weights.add_metric((agent, version), percent)
    for agent, version, region, count in view.desired_instances():
        desired.add_metric((agent, version, region), count)
    yield from (limited, retries, moved, queued, weights, desired)


def _instances(view: ClusterView) -> Iterator[Metric]:
    active = GaugeMetricFamily("swiftclaw_active_connections", ACTIVE_HELP, labels=LABELS)
    up = GaugeMetricFamily("swiftclaw_instance_up", UP_HELP, labels=LABELS)
    cpu = GaugeMetricFamily("swiftclaw_instance_cpu_percent", CPU_HELP, labels=LABELS)
    circuit = GaugeMetricFamily("swiftclaw_circuit_state", CIRCUIT_HELP, labels=LABELS)
    crashes = GaugeMetricFamily("swiftclaw_instance_crashes", CRASHES_HELP, labels=LABELS)
    states = GaugeMetricFamily("swiftclaw_instances", "Instances by state.", labels=(*GROUP, "state"))
    by_state: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for agent, version, region, _ in view.desired_instances():
        by_state[agent, version, region, HEALTHY] = 0  # exposed even when zero: an alert compares it
    for row in view.instances():
        active.add_metric(row.key, view.totals.active(row.key))
        crashes.add_metric(row.key, 0)
        up.add_metric(row.key, int(row.state == HEALTHY))
        if row.cpu_percent is not None:
            cpu.add_metric(row.key, row.cpu_percent)
        if row.circuit is not None:
            circuit.add_metric(row.key, CIRCUITS[row.circuit])
        agent, version, region, _ = row.key
        by_state[agent, version, region, row.state] += 1
    for slot in view.crash_loops.loops():
        by_state[slot.agent, slot.version, slot.region, CRASH_LOOP] += 1
        crashes.add_metric(slot.key, slot.crashes)
    for labels, count in sorted(by_state.items()):
        states.add_metric(labels, count)
    yield from (active, up, cpu, circuit, states, crashes)


def _processes(totals: MetricTotals) -> Iterator[Metric]:
    gateways = GaugeMetricFamily("swiftclaw_gateway_tasks", GATEWAY_TASKS_HELP, labels=("gateway",))
    for gateway, tasks in sorted(totals.tasks.items()):
        gateways.add_metric((gateway,), tasks)
    controller = GaugeMetricFamily("swiftclaw_controller_tasks", "Unfinished asyncio tasks of the Controller's process.")
    controller.add_metric((), unfinished_tasks())
    yield from (gateways, controller)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    rows, total = [], 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts or (0,) * (len(bounds) + 1), strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows
