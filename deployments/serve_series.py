"""The series that the Serve dashboards of Ray's Grafana query, reported for requests that bypass Serve's proxies.

Names and labels are those of Ray 2.60 (SERIES; tests/deployments/test_serve_series.py compares them with the dashboards that
Ray generates). A gateway stands for Serve's proxy: requests, errors and latency by application and route. An instance reports
what a replica reports for calls by handle, of which instances get none, so nothing is counted twice. Both are called once a
second with counts that exist anyway, and cost nothing per request. What cannot be filled is in docs/monitoring.md.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from ray.serve import metrics as serve_metrics
from ray.util import metrics

from cluster.desired.apps import app_name
from cluster.messages import InstanceCounts, Observation
from cluster.placement.serve import GATEWAY_DEPLOYMENT
from cluster.placement.serve_internals import latency_buckets_ms
from cluster.telemetry.tally import BUCKETS_S, Key

log = logging.getLogger("swiftclaw.metrics")

MOST_OBSERVED = 500  # latencies per series and report: with more requests, a sample with the same quantiles
BY_SERVE = ("deployment", "replica", "application")  # labels that ray.serve.metrics adds within a replica


class Series(NamedTuple):
    """One series as Ray names it, without the prefix `ray_` and the suffixes of counters and histograms."""

    name: str
    labels: tuple[str, ...]
    help: str


HTTP_REQUESTS = Series(
    "serve_num_http_requests", ("route", "method", "application", "status_code"), "The number of HTTP requests processed."
)
HTTP_ERRORS = Series(
    "serve_num_http_error_requests", ("route", "error_code", "method", "application"), "The number of errored HTTP responses."
)
HTTP_LATENCY = Series(
    "serve_http_request_latency_ms", ("method", "route", "application", "status_code"), "The latency of HTTP requests."
)
HTTP_ONGOING = Series(
    "serve_num_ongoing_http_requests", ("node_id", "node_ip_address"), "The number of ongoing requests in this gateway."
)
QUEUED = Series(
    "serve_deployment_queued_queries",
    ("deployment", "application", "handle", "actor_id"),
    "The number of requests that wait for an instance.",
)
REQUESTS = Series("serve_deployment_request_counter", (*BY_SERVE, "route"), "The number of requests processed.")
ERRORS = Series("serve_deployment_error_counter", (*BY_SERVE, "route", "exception_type"), "The number of failed requests.")
LATENCY = Series("serve_deployment_processing_latency_ms", (*BY_SERVE, "route"), "The latency of requests.")
PROCESSING = Series("serve_replica_processing_queries", BY_SERVE, "The number of requests in flight.")

SERIES = (HTTP_REQUESTS, HTTP_ERRORS, HTTP_LATENCY, HTTP_ONGOING, QUEUED, REQUESTS, ERRORS, LATENCY, PROCESSING)


class MetricsApi(Protocol):
    """`ray.util.metrics` or `ray.serve.metrics`."""

    @property
    def Counter(self) -> Callable[..., Any]: ...  # noqa: N802 - as in Ray

    @property
    def Gauge(self) -> Callable[..., Any]: ...  # noqa: N802

    @property
    def Histogram(self) -> Callable[..., Any]: ...  # noqa: N802


class GatewaySeries:
    """What one gateway reports, as Serve's proxies do. `app`: its Serve app; `replica`: its Serve id; `node`: id and address.

    A request belongs to the Serve app of the instance that answered it, or to the gateway's if there was none. The route is
    the agent's.
    """

    def __init__(self, app: str, replica: str, node: tuple[str, str], api: MetricsApi = metrics) -> None:
        self._app, self._replica = app, replica
        self._node = dict(zip(HTTP_ONGOING.labels, node, strict=True))
        self._requests, self._errors = (_made(api.Counter, series) for series in (HTTP_REQUESTS, HTTP_ERRORS))
        self._latency = _made(api.Histogram, HTTP_LATENCY, boundaries=latency_buckets_ms())
        self._ongoing, self._queued = (_made(api.Gauge, series) for series in (HTTP_ONGOING, QUEUED))
        self._agents: set[str] = set()  # those with a value in `_queued`
        self._newest: dict[str, Observation] = {}  # by gateway process: the replica's own, and its workers'

    def report(self, observation: Observation) -> None:
        """Called with every observation; each batch counts once, however often it is sent."""
        before = self._newest.get(observation.gateway)
        if before is None or observation.batch > before.batch:
            for key, counts in observation.instances.items():
                self._count_instance(key, counts)
            for (agent, code), count in observation.refusals.items():
                self._count(self._app, agent, code, count)
        self._newest[observation.gateway] = observation
        self._set_gauges()

    def forget(self, gateway: str) -> None:
        """A worker has ended: what it had in flight or waiting is gone."""
        if self._newest.pop(gateway, None) is not None:
            self._set_gauges()

    def _set_gauges(self) -> None:
        newest, queued = self._newest.values(), Counter[str]()
        for observation in newest:
            queued.update(observation.queued)
        self._ongoing.set(sum(counts.active for each in newest for counts in each.instances.values()), self._node)
        for agent in self._agents - queued.keys():  # removed: a gauge keeps its last value
            self._set_queued(agent, 0)
        self._agents = {*queued}
        for agent, waiting in queued.items():
            self._set_queued(agent, waiting)

    def _set_queued(self, agent: str, waiting: int) -> None:
        at = {"deployment": GATEWAY_DEPLOYMENT, "application": self._app, "actor_id": self._replica}
        self._queued.set(waiting, _labels(QUEUED, **at, handle=agent))

    def _count_instance(self, key: Key, counts: InstanceCounts) -> None:
        agent, version, region, _ = key
        app = app_name(agent, version, region)
        for code, count in counts.codes.items():
            self._count(app, agent, code, count)
        labels = _labels(HTTP_LATENCY, application=app, route=route_of(agent))
        for latency_ms in latencies_ms(counts.durations):
            self._latency.observe(latency_ms, labels)

    def _count(self, app: str, agent: str, code: int, count: int) -> None:
        labels = {"application": app, "route": route_of(agent)}
        self._requests.inc(count, _labels(HTTP_REQUESTS, **labels, status_code=str(code)))
        if code >= 400:  # as Serve's proxies count
            self._errors.inc(count, _labels(HTTP_ERRORS, **labels, error_code=str(code)))


class InstanceSeries:
    """What one instance reports, as Serve's replicas do; Serve adds the labels of the replica."""

    def __init__(self, agent: str, api: MetricsApi = serve_metrics) -> None:
        self._route = {"route": route_of(agent)}
        self._requests, self._errors = (_made(api.Counter, series, without=BY_SERVE) for series in (REQUESTS, ERRORS))
        self._latency = _made(api.Histogram, LATENCY, without=BY_SERVE, boundaries=latency_buckets_ms())
        self._processing = _made(api.Gauge, PROCESSING, without=BY_SERVE)

    def report(self, counts: InstanceCounts) -> None:
        """`counts`: what was counted since the last report, and the requests in flight."""
        for code, count in counts.codes.items():
            if code < 500:
                self._requests.inc(count, dict(self._route))
            else:
                self._errors.inc(count, {**self._route, "exception_type": str(code)})
        for latency_ms in latencies_ms(counts.durations):
            self._latency.observe(latency_ms, dict(self._route))
        self._processing.set(counts.active, {})


def route_of(agent: str) -> str:
    """The route label: the agent's path; `/` for requests to no agent."""
    return f"/agents/{agent}" if agent else "/"


def latencies_ms(counts: Sequence[int], most: int = MOST_OBSERVED) -> Iterator[float]:
    """Latencies that fill the buckets of `tally.BUCKETS_S` like `counts`, spread evenly within each; at most about `most`."""
    total = sum(counts)
    bounds = (0.0, *BUCKETS_S, 2 * BUCKETS_S[-1])
    for (low, high), count in zip(pairwise(bounds), counts, strict=False):
        number = count if total <= most else round(count * most / total) or min(count, 1)
        for place in range(number):
            yield 1000 * (low + (high - low) * (place + 0.5) / number)


def _labels(series: Series, **values: str) -> dict[str, str]:
    """All labels of the series; those without a value here are empty, which Prometheus treats as absent."""
    return {label: values.get(label, "") for label in series.labels}


def _made(kind: Callable[..., Any], series: Series, without: Sequence[str] = (), **more: Any) -> Any:
    labels = tuple(label for label in series.labels if label not in without)
    return kind(series.name, description=series.help, tag_keys=labels, **more)
