"""The series for Ray's Serve dashboards: as the dashboards that Ray generates query them, and each request counted once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.metrics.grafana_dashboard_factory import (
    generate_serve_deployment_grafana_dashboard,
    generate_serve_grafana_dashboard,
)

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import BUCKETS_S, Tally
from deployments.serve_series import (
    HTTP_ERRORS,
    HTTP_LATENCY,
    HTTP_ONGOING,
    HTTP_REQUESTS,
    MOST_OBSERVED,
    QUEUED,
    SERIES,
    GatewaySeries,
    InstanceSeries,
    Series,
    latencies_ms,
)

PAGE = Path(__file__).parents[2] / "docs/monitoring.md"
BY_SERVE_ITSELF = {
    "serve_deployment_replica_healthy",
    "serve_controller_control_loop_duration_s",
    "serve_controller_num_control_loops",
}
OF_EVERY_SERIES = {"ray_io_cluster", "le"}
KEY = ("a", "v1", "us", "instance-1")
ON_A = {"application": "a.v1.us", "route": "/agents/a"}
AT_GATEWAY = {"application": "gateway.us", "route": "/agents/a"}


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(text) for text, _ in (generate_serve_grafana_dashboard(), generate_serve_deployment_grafana_dashboard())]


def expressions() -> Iterator[str]:
    """Every expression of the panels, rows of collapsed panels included."""
    panels = [panel for dashboard in dashboards() for panel in dashboard["panels"]]
    while panels:
        panel = panels.pop()
        panels += panel.get("panels", ())
        yield from (target["expr"] for target in panel.get("targets", ()))


def variables() -> Iterator[str]:
    for dashboard in dashboards():
        yield from (variable["definition"] for variable in dashboard["templating"]["list"] if variable.get("definition"))


def names(expression: str) -> set[str]:
    """The series of Serve that an expression queries, without prefix and suffix."""
    text = expression.replace("(http|grpc)", "http") + " " + expression.replace("(http|grpc)", "grpc")
    return {re.sub(r"(_total|_bucket)$", "", name) for name in re.findall(r"\bray_(serve_\w+)", text)}


def labels(expression: str) -> set[str]:
    """The labels that it selects by, or groups by."""
    grouped = [name for group in re.findall(r"\bby \(([^)]*)\)", expression) for name in group.split(", ")]
    asked = re.search(r"label_values\(.*, (\w+)\)$", expression)
    return {*grouped, *re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression), *(asked.groups() if asked else ())} - {"__name__"}


def test_every_label_that_rays_dashboards_use_is_one_that_is_reported() -> None:
    compared: set[str] = set()
    for expression in (*expressions(), *variables()):
        for series in SERIES:
            if series.name in names(expression):
                extra = {"replica"} if series == QUEUED else set()  # which Serve's own series does not have either
                assert labels(expression) <= {*series.labels, *OF_EVERY_SERIES, *extra}, expression
                compared.add(series.name)
    assert compared == {series.name for series in SERIES}, "each series is one that a panel queries"


def test_what_is_queried_and_not_reported_is_on_the_page() -> None:
    queried = {name for expression in expressions() for name in names(expression)}
    missing = queried - {series.name for series in SERIES} - BY_SERVE_ITSELF
    section = PAGE.read_text("utf-8").split("### The Serve dashboards of Ray", 1)[1].split("\n#", 1)[0]
    assert missing == {name.removeprefix("ray_") for name in re.findall(r"`ray_(serve_\w+)`", section)}


class FakeMetrics:
    """`ray.util.metrics`: sums of counters, last values of gauges, and observations, by series and labels."""

    def __init__(self, added: tuple[str, ...] = ()) -> None:
        self.counted: Counter[Any] = Counter()
        self.set: dict[Any, float] = {}
        self.observed: dict[Any, list[float]] = {}
        self.made: dict[str, tuple[str, ...]] = {}
        self._added = added

    def _register(self, name: str, tag_keys: tuple[str, ...]) -> None:
        self.made[name] = (*self._added, *tag_keys)

    def _key(self, name: str, tags: dict[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
        assert {*tags, *self._added} == {*self.made[name]}, "Ray raises ValueError"
        return name, frozenset((label, value) for label, value in tags.items() if value)

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:  # noqa: N802 - as in Ray
        return FakeMetric(self, name, tag_keys)

    Gauge = Counter

    def Histogram(self, name: str, description: str, tag_keys: tuple[str, ...], boundaries: list[float]) -> Any:  # noqa: N802
        assert boundaries == sorted(boundaries)
        return FakeMetric(self, name, tag_keys)


class FakeMetric:
    def __init__(self, metrics: FakeMetrics, name: str, tag_keys: tuple[str, ...]) -> None:
        metrics._register(name, tag_keys)
        self._metrics, self._name = metrics, name

    def inc(self, value: int, tags: dict[str, str]) -> None:
        assert value > 0, "Ray raises ValueError"
        self._metrics.counted[self._metrics._key(self._name, tags)] += value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._metrics.set[self._metrics._key(self._name, tags)] = value

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self._metrics.observed.setdefault(self._metrics._key(self._name, tags), []).append(value)


def of(series: Series, **values: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return series.name, frozenset(values.items())


def counts(active: int = 0, **codes: int) -> InstanceCounts:
    tally = Tally()
    for code, count in codes.items():
        for _ in range(count):
            tally.add(int(code[1:]), 0.15, None)
    tally.active = active
    return tally.take()


def gateway() -> tuple[FakeMetrics, GatewaySeries]:
    fake = FakeMetrics()
    return fake, GatewaySeries("gateway.us", "g1", ("n1", "10.0.0.1"), fake)


def test_a_gateway_reports_requests_by_the_app_that_answered_and_refusals_as_its_own() -> None:
    fake, series = gateway()
    observation = Observation("g1", {KEY: counts(3, c200=5, c404=2, c502=1)}, {("a", 429): 4, ("", 404): 1}, batch=1)
    series.report(observation)
    assert fake.counted == {
        of(HTTP_REQUESTS, **ON_A, status_code="200"): 5,
        of(HTTP_REQUESTS, **ON_A, status_code="404"): 2,
        of(HTTP_REQUESTS, **ON_A, status_code="502"): 1,
        of(HTTP_REQUESTS, **AT_GATEWAY, status_code="429"): 4,
        of(HTTP_REQUESTS, application="gateway.us", route="/", status_code="404"): 1,
        of(HTTP_ERRORS, **ON_A, error_code="404"): 2,
        of(HTTP_ERRORS, **ON_A, error_code="502"): 1,
        of(HTTP_ERRORS, **AT_GATEWAY, error_code="429"): 4,
        of(HTTP_ERRORS, application="gateway.us", route="/", error_code="404"): 1,
    }
    (latencies,) = fake.observed.values()
    assert list(fake.observed) == [of(HTTP_LATENCY, **ON_A)]
    assert len(latencies) == 8 and all(100 < latency <= 250 for latency in latencies)


def test_a_batch_that_is_sent_again_counts_once_and_has_the_states_of_now() -> None:
    fake, series = gateway()
    for active, waiting in ((3, 2), (4, 0)):
        series.report(Observation("g1", {KEY: counts(active, c200=5)}, queued={"a": waiting}, batch=1))
    assert list(fake.counted.values()) == [5]
    assert fake.set == {
        of(HTTP_ONGOING, node_id="n1", node_ip_address="10.0.0.1"): 4,
        of(QUEUED, deployment="Gateway", application="gateway.us", handle="a", actor_id="g1"): 0,
    }


def test_the_queue_of_a_removed_agent_is_reported_as_empty_and_an_idle_instance_as_idle() -> None:
    fake, series = gateway()
    for batch, queued in enumerate(({"a": 2, "b": 1}, {"b": 1}, {"b": 1}), 1):
        series.report(Observation("g1", {}, queued=queued, batch=batch))
    waiting = {dict(labels)["handle"]: value for (name, labels), value in fake.set.items() if name == QUEUED.name}
    assert waiting == {"a": 0, "b": 1}
    instance = InstanceSeries("a", beside := FakeMetrics(added=("deployment", "replica", "application")))
    for active in (2, 0):
        instance.report(counts(active))
    assert list(beside.set.values()) == [0]


def test_a_gateway_and_its_workers_are_added_up_and_one_that_ended_is_left_out() -> None:
    fake, series = gateway()
    for name, active, waiting in (("g1", 0, 0), ("g1-1", 3, 1), ("g1-2", 4, 2)):
        series.report(Observation(name, {KEY: counts(active, c200=5)}, queued={"a": waiting}, batch=1))
    assert sum(fake.counted.values()) == 15
    assert list(fake.set.values()) == [7, 3]
    series.forget("g1-2")
    series.forget("never known")
    assert list(fake.set.values()) == [3, 1]
    assert sum(fake.counted.values()) == 15


def test_an_instance_reports_answers_and_failures_apart_as_serves_replicas_do() -> None:
    fake = FakeMetrics(added=("deployment", "replica", "application"))
    InstanceSeries("a", fake).report(counts(2, c200=5, c404=1, c500=3))
    route = ("route", "/agents/a")
    assert fake.counted == {
        ("serve_deployment_request_counter", frozenset({route})): 6,
        ("serve_deployment_error_counter", frozenset({route, ("exception_type", "500")})): 3,
    }
    assert fake.set == {("serve_replica_processing_queries", frozenset()): 2}
    assert [len(observed) for observed in fake.observed.values()] == [9]


def test_the_labels_are_those_that_the_series_name() -> None:
    fake = FakeMetrics()
    GatewaySeries("gateway.us", "g1", ("n1", "10.0.0.1"), fake)
    beside = FakeMetrics(added=("deployment", "replica", "application"))
    InstanceSeries("a", beside)
    assert {**fake.made, **beside.made} == {series.name: series.labels for series in SERIES}


@pytest.mark.parametrize("most", [10, MOST_OBSERVED])
def test_latencies_fill_the_buckets_that_they_came_from(most: int) -> None:
    filled = [0] * (len(BUCKETS_S) + 1)
    filled[4], filled[7], filled[-1] = 6, 3, 1
    observed = list(latencies_ms(filled, most))
    bounds = [1000 * bound for bound in BUCKETS_S]
    assert Counter(sum(value > bound for bound in bounds) for value in observed) == {4: 6, 7: 3, len(BUCKETS_S): 1}


def test_above_a_number_of_requests_latencies_are_a_sample_that_keeps_rare_ones() -> None:
    filled = [0] * (len(BUCKETS_S) + 1)
    filled[3], filled[10] = 99_999, 1
    observed = list(latencies_ms(filled, 500))
    assert 500 <= len(observed) <= 502 and max(observed) > 1000
    assert list(latencies_ms((), 500)) == []
