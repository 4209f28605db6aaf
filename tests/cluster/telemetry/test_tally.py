"""Counting: nothing twice, nothing lost, percentiles within their bucket."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import BUCKETS_S, ROUTING_BUCKETS_S, Key, Tally, merge, percentile_s
from cluster.telemetry.totals import WINDOW_S, MetricTotals

KEY: Key = ("a", "v1", "us", "instance-1")


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


def test_gateways_add_up_and_a_removed_gateway_takes_its_active_requests_along() -> None:
    totals = MetricTotals()
    for gateway, active in (("g1", 3), ("g2", 4)):
        counts = InstanceCounts(**{**vars(tallied((200, 0.1), (502, 0.2))), "active": active})
        totals.add(Observation(gateway, {KEY: counts}), now=1.0)
    assert (totals.requests(KEY), totals.active(KEY)) == ((4, 2), 7)
    totals.forget_gateway("g1")
    assert (totals.requests(KEY), totals.active(KEY)) == ((4, 2), 4)


def test_recent_forgets_what_is_older_than_the_window_and_the_counters_do_not() -> None:
    totals = MetricTotals()
    totals.add(Observation("g", {KEY: tallied((500, 1.0))}), now=0.0)
    totals.add(Observation("g", {KEY: tallied((200, 0.1))}), now=WINDOW_S / 2)
    assert (totals.recent(KEY, WINDOW_S / 2).requests, totals.recent(KEY, WINDOW_S / 2).errors) == (2, 1)
    assert (totals.recent(KEY, WINDOW_S + 1).requests, totals.recent(KEY, WINDOW_S + 1).errors) == (1, 0)
    assert totals.requests(KEY) == (2, 1)


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


def test_routing_times_survive_a_lost_observation() -> None:
    one, other = Tally(), Tally()
    one.routed(0.2)
    other.routed(30.0)
    together = merge(one.take(), other.take())
    assert (sum(together.routings), round(together.routing_sum_s, 6), len(together.routings)) == (
        2,
        30.2,
        len(ROUTING_BUCKETS_S) + 1,
    )


def test_a_removed_gateway_takes_its_wait_queue_along_and_leaves_its_counts() -> None:
    totals = MetricTotals()
    observation = Observation("g", {}, {("a", 503): 2, ("a", 429): 4}, retries={"a": 5}, queued={"a": 6})
    totals.add(observation, now=0.0)
    assert totals.queued("a") == 6
    totals.forget_gateway("g")
    assert (totals.queued("a"), totals.retries["a"], totals.refused("a"), totals.rate_limited("a")) == (0, 5, 6, 4)


def test_instances_together_have_the_percentiles_of_all_their_requests() -> None:
    totals, other = MetricTotals(), ("a", "v1", "us", "instance-2")
    totals.add(Observation("g", {KEY: tallied(*[(200, 0.004)] * 98), other: tallied((500, 50.0), (200, 50.0))}), now=0.0)
    together = totals.recently([KEY, other], 1.0)
    assert (together.requests, together.errors, together.error_rate) == (100, 1, 1.0)
    assert together.p50_ms is not None and together.p50_ms < 5
    assert together.p99_ms is not None and together.p99_ms > 30_000
    assert totals.recently([KEY, other], WINDOW_S + 1) == totals.recently([], 1.0)


def test_two_hundred_busy_instances_are_asked_in_little_time() -> None:
    """What the API does for a table of all of them; a second of it is many times what it takes."""
    totals = MetricTotals()
    keys: list[Key] = [("a", "v1", "us", f"instance-{number}") for number in range(200)]
    counts = tallied(*[(200, 0.1)] * 5)
    for second in range(60):
        for gateway in ("g", "h"):
            totals.add(Observation(gateway, dict.fromkeys(keys, counts)), now=float(second))
    began = time.process_time()
    assert sum(totals.recent(key, 59.5).requests for key in keys) == 200 * 60 * 2 * 5
    assert time.process_time() - began < 1.0
