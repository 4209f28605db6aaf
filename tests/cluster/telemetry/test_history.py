"""MetricHistory: every second once, percentiles that are true for their slot, bounded memory, and reading that is cheap."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from cluster.telemetry.history import COLUMNS, RINGS, SERIES, MetricHistory
from cluster.telemetry.samples import InstanceSample, RefusalSample, WeightSample
from cluster.telemetry.tally import BUCKETS_S, Key

BUCKETS = len(BUCKETS_S) + 1
START = 1_200_000


def key(number: int = 1, agent: str = "a") -> Key:
    return (agent, "v1", "us", f"instance-{number}")


def sample(requests: int, *, number: int = 1, bucket: int = 5, errors: int = 0, connections: int = 0) -> InstanceSample:
    durations = [0] * BUCKETS
    durations[bucket] = requests
    return InstanceSample(key(number), requests, errors, requests * 0.04, tuple(durations), connections, 10.0)


def fed(*totals: int) -> MetricHistory:
    history = MetricHistory()
    for second, total in enumerate(totals):
        history.add(START + second, [sample(total)])
    return history


def test_a_second_shows_what_was_added_in_it() -> None:
    read = fed(5, 5, 12).read("a", START + 3, 3, 10)
    assert (read.window.step_s, read.window.times) == (1, [START, START + 1, START + 2])
    row = read.instances[key()]
    assert row["requests"] == [5, 0, 7]
    assert row["mean_ms"] == [40.0, None, 40.0]
    assert row["cpu"] == [10.0, 10.0, 10.0]


def test_percentiles_are_in_the_bucket_of_what_was_added_not_of_all() -> None:
    history = MetricHistory()
    slow, quick = [0] * BUCKETS, [0] * BUCKETS
    slow[10], quick[10], quick[2] = 100, 100, 1
    history.add(START, [InstanceSample(key(), 100, 0, 100.0, tuple(slow), 0)])
    history.add(START + 1, [InstanceSample(key(), 101, 0, 100.004, tuple(quick), 0)])
    first, second = history.read("a", START + 2, 2, 10).instances[key()]["p95_ms"]
    assert 1_000 * BUCKETS_S[9] < first <= 1_000 * BUCKETS_S[10]
    assert 1_000 * BUCKETS_S[1] < second <= 1_000 * BUCKETS_S[2]


def test_a_window_with_more_seconds_than_points_is_read_in_coarser_slots_that_lose_nothing() -> None:
    history = fed(*range(1, 121))
    fine, coarse = (history.read("a", START + 120, 120, points) for points in (120, 12))
    assert (fine.window.step_s, coarse.window.step_s, len(coarse.window.times)) == (1, 10, 12)
    assert sum(fine.instances[key()]["requests"]) == sum(coarse.instances[key()]["requests"]) == 120


def test_the_last_slot_is_one_that_is_complete() -> None:
    assert fed(1, 2, 3).read("a", START + 2, 2, 2).window.times == [START, START + 1]


def test_what_is_not_known_is_none_and_a_gap_is_zero() -> None:
    history = fed(1)
    history.add(START + 3, [sample(4)])
    read = history.read("a", START + 4, 6, 6)
    assert read.instances[key()]["requests"] == [None, None, 1, 0, 0, 3]
    assert read.instances[key()]["cpu"][3] is None


def test_a_ring_that_is_full_forgets_the_oldest() -> None:
    history = fed(*range(1, RINGS[0][1] + 101))
    read = history.read("a", START + RINGS[0][1] + 100, RINGS[0][1], RINGS[0][1])
    assert read.instances[key()]["requests"] == [1] * RINGS[0][1]


def test_a_day_is_there_by_the_minute() -> None:
    read = fed(1).read("a", START + 60, 86_400, 1_440)
    assert (read.window.step_s, len(read.window.times), read.instances[key()]["requests"][-1]) == (60, 1_440, 1)


def test_another_agents_series_are_not_read() -> None:
    history = MetricHistory()
    history.add(START, [InstanceSample(key(agent="b"), 1, 0, 0.0, (1,) + (0,) * (BUCKETS - 1), 0)])
    assert history.read("a", START + 1, 5, 5).instances == {}


def test_refusals_and_traffic_shares_are_series_of_their_own() -> None:
    history = MetricHistory()
    for second, (refused, limited, queued, percent) in enumerate([(3, 1, 4, 10.0), (5, 1, 0, 50.0)]):
        refusals = [RefusalSample("a", refused, limited, queued), RefusalSample("b", 9, 9, 9)]
        weights = [WeightSample("a", "v2", percent), WeightSample("b", "v2", 9.0)]
        history.add(START + second, [sample(second), *refusals, *weights])
    read = history.read("a", START + 2, 3, 3)
    assert read.refusals == {"requests": [None, 3, 2], "rate_limited": [None, 1, 0], "queued": [None, 4, 0]}
    assert read.weights == {"v2": [None, 10, 50]}
    assert list(read.instances) == [key()]


def test_an_agent_without_any_sample_has_empty_series() -> None:
    read = fed(1).read("other", START + 2, 2, 2)
    assert (read.instances, read.weights) == ({}, {})
    assert read.refusals == {"requests": [None, None], "rate_limited": [None, None], "queued": [None, None]}


def test_a_coarse_slot_has_the_longest_queue_and_all_refusals() -> None:
    history = MetricHistory()
    for second, queued in enumerate([1, 7, 2]):
        history.add(START + second, [RefusalSample("a", 2 * second, 0, queued)])
    read = history.read("a", START + 10, 20, 2)
    assert (read.window.step_s, read.refusals["requests"], read.refusals["queued"]) == (10, [None, 4], [None, 7])


def test_it_states_what_it_holds() -> None:
    history = fed(1, 2)
    history.add(START + 2, [WeightSample("a", "v1", 90.0), WeightSample("a", "v2", 10.0), RefusalSample("a", 0, 0, 0)])
    assert repr(history) == "<MetricHistory: 1 instances, 1 agents, 2 versions>"


def test_instances_that_are_gone_make_room_and_running_ones_never_do() -> None:
    history = MetricHistory()
    history.add(START, [sample(1, number=number) for number in range(SERIES)])
    history.add(START + 3_600, [sample(2, number=number) for number in range(100, SERIES + 50)])
    kept = {name for _, _, _, name in history.read("a", START + 3_660, 10_000, 1_440).instances}
    assert {f"instance-{number}" for number in range(100, SERIES + 50)} <= kept
    assert len(kept) == SERIES


@pytest.fixture(scope="module")
def two_hundred() -> MetricHistory:
    history = MetricHistory()
    for second in range(20):
        history.add(START + second, [sample(second * 5, number=number) for number in range(200)])
    return history


def test_two_hundred_instances_take_less_than_50_megabytes() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        history = MetricHistory()
        for second in (0, 61, 122):
            history.add(START + second, [sample(second, number=number) for number in range(200)])
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(history.read("a", START + 123, 60, 60).instances) == 200
    assert used < 50 * 10**6


def test_two_hundred_instances_are_read_in_little_time(two_hundred: MetricHistory) -> None:
    """A second of it is some twenty times what it takes."""
    began = time.process_time()
    read = two_hundred.read("a", START + 20, 900, 120)
    assert (len(read.instances), set(read.instances[key()])) == (200, set(COLUMNS))
    assert time.process_time() - began < 1.0


def read(history: MetricHistory, now: float, window_s: float = 10) -> list[int | None]:
    """Requests by the second."""
    values: list[int | None] = history.read("a", now, window_s, 300, ("requests",)).instances[key()]["requests"]
    return values


def test_after_the_clock_was_set_back_a_little_the_second_goes_on_until_it_has_caught_up() -> None:
    history = fed(1, 2, 3)
    for now, total in ((0, 4), (1, 5), (2, 6), (3, 7), (4, 8)):
        history.add(START + now, [sample(total)])
    assert read(history, START + 5)[-5:] == [1, 1, 4, 1, 1]


def test_after_the_clock_was_set_back_an_hour_what_follows_is_shown_at_its_time() -> None:
    history = MetricHistory()
    for second in range(10):
        history.add(7200 + second, [sample(second)])
    for second in range(5):
        history.add(3600 + second, [sample(100 + second)])
    assert read(history, 3605)[-5:] == [91, 1, 1, 1, 1]
    history.add(3606, [sample(107)])
    assert read(history, 3607)[-3:] == [1, 0, 3], "and goes on from there"


def test_the_coarse_slots_of_the_time_before_stay_when_the_clock_is_set_back() -> None:
    history = MetricHistory()
    for second in range(0, 7200, 10):
        history.add(second, [sample(second)])
    history.add(3600, [sample(7200)])
    by_the_minute = history.read("a", 3660, 3600 * 24, 1440, ("requests",)).instances[key()]["requests"]
    assert by_the_minute[-3:-1] == [60, 60]


def test_a_series_of_a_time_to_come_is_silent() -> None:
    """Instances that are gone make room, although the clock was set back after their last sample."""
    history = MetricHistory()
    for number in range(SERIES):
        history.add(7200, [sample(1, number=number)])
    for number in range(SERIES):
        history.add(3600, [sample(1, number=SERIES + number)])
    assert repr(history).startswith(f"<MetricHistory: {SERIES} instances")
