"""Counting: nothing twice, nothing lost, percentiles within their bucket."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cluster.admin.prometheus import InstanceRow, exposition
from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import BUCKETS_S, ROUTING_BUCKETS_S, Key, Tally, merge, percentile_s
from cluster.telemetry.totals import WINDOW_S, MetricTotals

KEY: Key = ("a", "v1", "us", "instance-1")


class Gauges:
    def agents(self) -> Iterable[str]:
        return ["a"]

    def rows(self) -> Iterable[InstanceRow]:
        return [InstanceRow(KEY, "healthy", 12.5, "half-open")]

    def desired(self) -> Iterable[tuple[str, str, str, int]]:
        return [("a", "v1", "us", 3)]

    def weights(self) -> Iterable[tuple[str, str, float]]:
        return [("a", "v1", 90), ("a", "v2", 10)]


def tallied(*seen: tuple[int, float]) -> InstanceCounts:
    tally = Tally()
    for code, seconds in seen:
        tally.add(code, seconds, seconds / 2)
    return tally.take()


def test_taking_a_tally_starts_it_anew_but_keeps_what_is_in_flight() -> None:
    tally = Tally()
    tally.active = 2
    tally.add(200, 0.1, 0.05)
    assert (tally.take().codes, tally.take().codes, tally.take().active) == ({200: 1}, {}, 2)


def test_two_gateways_add_up_and_a_lost_gateway_takes_its_active_requests_along() -> None:
    ledger = MetricTotals()
    for gateway, active in (("g1", 3), ("g2", 4)):
        counts = InstanceCounts(**{**vars(tallied((200, 0.1), (502, 0.2))), "active": active})
        ledger.add(Observation(gateway, {KEY: counts}), now=1.0)
    assert (ledger.requests(KEY), ledger.active(KEY)) == ((4, 2), 7)
    ledger.forget_gateway("g1")
    assert (ledger.requests(KEY), ledger.active(KEY)) == ((4, 2), 4)


def test_recent_forgets_what_is_older_than_the_window_and_the_counters_do_not() -> None:
    ledger = MetricTotals()
    ledger.add(Observation("g", {KEY: tallied((500, 1.0))}), now=0.0)
    ledger.add(Observation("g", {KEY: tallied((200, 0.1))}), now=WINDOW_S / 2)
    assert (ledger.recent(KEY, WINDOW_S / 2).requests, ledger.recent(KEY, WINDOW_S / 2).errors) == (2, 1)
    assert (ledger.recent(KEY, WINDOW_S + 1).requests, ledger.recent(KEY, WINDOW_S + 1).errors) == (1, 0)
    assert ledger.requests(KEY) == (2, 1)


@given(st.lists(st.floats(0, 700), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_in_the_bucket_of_the_true_one(seconds: list[float], share: float) -> None:
    counts = tallied(*((200, value) for value in seconds)).durations
    found = percentile_s(counts, share)
    true = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
    bounds = (0.0, *BUCKETS_S)
    assert found is not None
    index = min(sum(true > bound for bound in BUCKETS_S), len(BUCKETS_S) - 1)
    assert bounds[index] - 1e-9 <= found <= bounds[index + 1] + 1e-9


@given(st.lists(st.tuples(st.sampled_from([200, 404, 500]), st.floats(0, 700))), st.integers(0, 10))
def test_an_undelivered_observation_merged_with_the_next_loses_nothing(seen: list[tuple[int, float]], cut: int) -> None:
    together, parts = tallied(*seen), merge(tallied(*seen[:cut]), tallied(*seen[cut:]))
    assert (together.codes, together.durations or ()) == (parts.codes, parts.durations or ())


def samples(text: bytes) -> dict[tuple[str, str | None], float]:
    told_apart = ("le", "code", "state")
    return {
        (sample.name, next((sample.labels[name] for name in told_apart if name in sample.labels), None)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def busy_ledger() -> MetricTotals:
    ledger, tally = MetricTotals(), Tally()
    for code, seconds in ((200, 0.003), (200, 700.0)):
        tally.add(code, seconds, seconds / 2)
        tally.routed(0.00003)
    ledger.add(
        Observation("g", {KEY: tally.take()}, {("a", 503): 2, ("a", 429): 4}, retries={"a": 5}, queued={"a": 6}), now=0.0
    )
    return ledger


def test_the_exposition_is_prometheus_text_with_cumulative_buckets() -> None:
    found = samples(exposition(busy_ledger(), Gauges()))
    assert found["swiftclaw_requests_total", "200"] == 2
    assert found["swiftclaw_requests_total", "503"] == 2
    assert found["swiftclaw_request_duration_seconds_bucket", "0.0025"] == 0
    assert found["swiftclaw_request_duration_seconds_bucket", "0.005"] == 1
    assert found["swiftclaw_request_duration_seconds_bucket", "600.0"] == 1
    assert found["swiftclaw_request_duration_seconds_bucket", "+Inf"] == 2
    assert found["swiftclaw_routing_seconds_bucket", "5e-05"] == found["swiftclaw_routing_seconds_count", None] == 2
    assert found["swiftclaw_instances", "healthy"] == 1
    assert found["swiftclaw_desired_instances", None] == 3
    assert found["swiftclaw_instance_cpu_percent", None] == 12.5
    assert found["swiftclaw_circuit_state", None] == 2
    assert found["swiftclaw_rate_limited_total", None] == 4
    assert found["swiftclaw_retries_total", None] == 5
    assert found["swiftclaw_queued_requests", None] == 6


def test_where_no_instance_is_healthy_that_is_said() -> None:
    class Ill(Gauges):
        def rows(self) -> Iterable[InstanceRow]:
            return ()

    assert samples(exposition(busy_ledger(), Ill()))["swiftclaw_instances", "healthy"] == 0


def test_every_metric_of_the_contract_is_there_with_help() -> None:
    text = exposition(busy_ledger(), Gauges()).decode()
    named = {family.name for family in text_string_to_metric_families(text) if family.documentation}
    assert named == {
        "swiftclaw_requests", "swiftclaw_request_duration_seconds", "swiftclaw_time_to_first_byte_seconds",
        "swiftclaw_active_connections", "swiftclaw_instance_up", "swiftclaw_circuit_state", "swiftclaw_rate_limited",
        "swiftclaw_retries", "swiftclaw_queued_requests", "swiftclaw_routing_seconds", "swiftclaw_version_weight",
        "swiftclaw_instances", "swiftclaw_desired_instances", "swiftclaw_instance_cpu_percent",
    }  # fmt: skip


@pytest.mark.skipif(not shutil.which("promtool"), reason="Debian's package prometheus has promtool")
def test_promtool_accepts_it() -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition(busy_ledger(), Gauges()), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_routing_times_survive_a_lost_observation_and_a_lost_gateway_takes_its_line_along() -> None:
    one, other = Tally(), Tally()
    one.routed(0.2)
    other.routed(30.0)
    together = merge(one.take(), other.take())
    assert (sum(together.routings), round(together.routing_sum_s, 6), len(together.routings)) == (
        2,
        30.2,
        len(ROUTING_BUCKETS_S) + 1,
    )
    ledger = busy_ledger()
    ledger.forget_gateway("g")
    assert (ledger.queued("a"), ledger.retries["a"], ledger.refused("a"), ledger.rate_limited("a")) == (0, 5, 6, 4)


def test_instances_together_have_the_percentiles_of_all_their_requests() -> None:
    ledger, other = MetricTotals(), ("a", "v1", "us", "instance-2")
    ledger.add(Observation("g", {KEY: tallied(*[(200, 0.004)] * 98), other: tallied((500, 50.0), (200, 50.0))}), now=0.0)
    together = ledger.recently([KEY, other], 1.0)
    assert (together.requests, together.errors, together.error_rate) == (100, 1, 1.0)
    assert together.p50_ms is not None and together.p50_ms < 5
    assert together.p99_ms is not None and together.p99_ms > 30_000
    assert ledger.recently([KEY, other], WINDOW_S + 1) == ledger.recently([], 1.0)


def test_two_hundred_busy_instances_are_asked_in_little_time() -> None:
    """What the API does for a table of all of them; a second of it is many times what it takes."""
    ledger = MetricTotals()
    keys: list[Key] = [("a", "v1", "us", f"instance-{number}") for number in range(200)]
    counts = tallied(*[(200, 0.1)] * 5)
    for second in range(60):
        for gateway in ("g", "h"):
            ledger.add(Observation(gateway, dict.fromkeys(keys, counts)), now=float(second))
    began = time.process_time()
    assert sum(ledger.recent(key, 59.5).requests for key in keys) == 200 * 60 * 2 * 5
    assert time.process_time() - began < 1.0
