"""Counting: nothing twice, nothing lost, percentiles within their bucket."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cluster.messages import InstanceCounts, Observation
from cluster.metrics import BUCKETS_S, WINDOW_S, Key, Ledger, Tally, merge, percentile_s

KEY: Key = ("a", "v1", "us", "instance-1")


class NoGauges:
    def rows(self) -> Iterable[tuple[Key, str, bool, float | None]]:
        return [(KEY, "healthy", True, 12.5)]

    def desired(self) -> Iterable[tuple[str, str, str, int]]:
        return [("a", "v1", "us", 3)]


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
    ledger = Ledger()
    for gateway, active in (("g1", 3), ("g2", 4)):
        counts = InstanceCounts(**{**vars(tallied((200, 0.1), (502, 0.2))), "active": active})
        ledger.add(Observation(gateway, {KEY: counts}), now=1.0)
    assert (ledger.requests(KEY), ledger.active(KEY)) == ((4, 2), 7)
    ledger.forget_gateway("g1")
    assert (ledger.requests(KEY), ledger.active(KEY)) == ((4, 2), 4)


def test_recent_forgets_what_is_older_than_the_window_and_the_counters_do_not() -> None:
    ledger = Ledger()
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


def test_the_exposition_is_prometheus_text_with_cumulative_buckets() -> None:
    ledger = Ledger()
    ledger.add(Observation("g", {KEY: tallied((200, 0.003), (200, 700.0))}, {("a", 503): 2}), now=0.0)
    samples = {
        (sample.name, sample.labels.get("le") or sample.labels.get("code") or sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(ledger.exposition(NoGauges()).decode())
        for sample in family.samples
    }
    assert samples[("swiftclaw_requests_total", "200")] == 2
    assert samples[("swiftclaw_requests_total", "503")] == 2
    assert samples[("swiftclaw_request_duration_seconds_bucket", "0.0025")] == 0
    assert samples[("swiftclaw_request_duration_seconds_bucket", "0.005")] == 1
    assert samples[("swiftclaw_request_duration_seconds_bucket", "600.0")] == 1
    assert samples[("swiftclaw_request_duration_seconds_bucket", "+Inf")] == 2
    assert samples[("swiftclaw_instances", "healthy")] == 1
    assert samples[("swiftclaw_desired_instances", None)] == 3
    assert samples[("swiftclaw_instance_cpu_percent", None)] == 12.5
