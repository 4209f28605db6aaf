"""Rate limits: exact, per key, in bounded memory, the same for several gateways."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rate_limit import (
    LIMITERS,
    Decision,
    ExpiringKeys,
    FixedWindow,
    Limiter,
    SlidingWindow,
    TokenBucket,
    admit_all,
    headers,
    key_of,
)

ROOT = Path(__file__).parents[2]

every_limiter = pytest.mark.parametrize("name", list(LIMITERS))
gaps = st.sampled_from([0.0, 0.0, 0.25, 1.0, 2.5, 7.0, 30.0])  # sums of these are exact
arrivals = st.lists(st.tuples(gaps, st.sampled_from("abc")), max_size=80)
limits = st.integers(1, 6)


def admitted(limiter: Limiter[Any], key: str, now: float, times: int) -> int:
    return sum(limiter.admit(key, now).allowed for _ in range(times))


@given(arrivals, limits)
def test_it_decides_as_counting_all_admissions_of_the_last_window_would(steps: list[tuple[float, str]], requests: int) -> None:
    window, now, log = SlidingWindow(requests, 10.0), 0.0, list[tuple[float, str]]()
    for gap, key in steps:
        now += gap
        recent = [time for time, whose in log if whose == key and time > now - 10]
        decision = window.admit(key, now)
        assert decision.allowed is (len(recent) < requests)
        if decision.allowed:
            log.append((now, key))
            assert decision == (True, requests - len(recent) - 1, 0, min([*recent, now]) + 10 - now)
        else:
            assert decision == (False, 0, recent[0] + 10 - now, recent[0] + 10 - now)


@given(st.lists(st.floats(0, 3), max_size=200), limits)
def test_no_window_ever_holds_more_than_the_limit(waits: list[float], requests: int) -> None:
    window, now, log = SlidingWindow(requests, 5.0), 0.0, list[float]()
    for wait in waits:
        now += wait
        if window.admit("user", now).allowed:
            log.append(now)
    for start, end in zip(log, log[requests:], strict=False):
        assert end - start >= 5.0 - 1e-9


@every_limiter
@given(arrivals, limits)
def test_a_refusal_is_not_counted(name: str, steps: list[tuple[float, str]], requests: int) -> None:
    """One that knocks at every step gets no less than its twin who comes only when it would be let in."""
    knocking, polite, now = LIMITERS[name](requests, 10.0), LIMITERS[name](requests, 10.0), 0.0
    for gap, key in steps:
        now += gap
        assert knocking.peek(key, now) == polite.peek(key, now)
        decision = knocking.admit(key, now)
        if decision.allowed:
            polite.commit(key, now)


@every_limiter
@given(arrivals, limits)
def test_keys_share_nothing(name: str, steps: list[tuple[float, str]], requests: int) -> None:
    together, now = LIMITERS[name](requests, 10.0), 0.0
    alone = {key: LIMITERS[name](requests, 10.0) for key in "abc"}
    for gap, key in steps:
        now += gap
        assert together.admit(key, now) == alone[key].admit(key, now)


@every_limiter
@given(limits, st.floats(0, 1e6))
def test_what_remains_falls_by_one_with_each_admission_down_to_nothing(name: str, requests: int, now: float) -> None:
    limiter = LIMITERS[name](requests, 10.0)
    decisions = [limiter.admit("user", now) for _ in range(requests + 2)]
    assert [decision.remaining for decision in decisions] == [*range(requests - 1, -1, -1), 0, 0]
    assert [decision.allowed for decision in decisions] == [True] * requests + [False] * 2


@every_limiter
@given(st.lists(gaps, min_size=1, max_size=60), limits)
def test_asking_again_after_retry_after_is_let_in_and_before_it_is_not(name: str, waits: list[float], requests: int) -> None:
    limiter, now = LIMITERS[name](requests, 10.0), 0.0
    for wait in waits:
        now += wait
        decision = limiter.admit("user", now)
        if not decision.allowed:
            assert decision.retry_after_s > 0
            assert decision.reset_s == decision.retry_after_s
            assert not limiter.peek("user", now + 0.999 * decision.retry_after_s).allowed
            assert limiter.peek("user", now + decision.retry_after_s + 1e-6).allowed


@every_limiter
@given(st.lists(gaps, min_size=1, max_size=60), limits)
def test_when_reset_has_passed_there_is_more(name: str, waits: list[float], requests: int) -> None:
    limiter, now = LIMITERS[name](requests, 10.0), 0.0
    for wait in waits:
        now += wait
        decision = limiter.admit("user", now)
        later = limiter.peek("user", now + decision.reset_s + 1e-6)
        assert later.allowed
        assert later.remaining + 1 > decision.remaining


@every_limiter
def test_a_thousand_at_once_get_exactly_the_limit(name: str) -> None:
    limiter = LIMITERS[name](100, 60.0)
    assert admitted(limiter, "user", 1e6, 1000) == 100
    assert admitted(limiter, "other", 1e6, 1000) == 100


def test_a_hundred_users_at_twice_their_limit_get_exactly_ten_in_any_minute() -> None:
    window, log = SlidingWindow(10, 60.0), list[tuple[str, float]]()
    for tick in range(60):
        for user in range(100):
            now = 3.0 * tick + user / 100
            if window.admit(f"user-{user}", now).allowed:
                log.append((f"user-{user}", now))
    assert set(Counter(user for user, _ in log).values()) == {30}


def test_a_fixed_window_begins_anew_at_its_boundary() -> None:
    window = FixedWindow(3, 10.0)
    assert admitted(window, "user", 9.5, 5) == 3
    assert window.peek("user", 9.5) == (False, 0, 0.5, 0.5)
    assert admitted(window, "user", 10.0, 5) == 3


@given(st.lists(st.floats(0, 4), max_size=150), limits)
def test_no_fixed_window_holds_more_than_the_limit(waits: list[float], requests: int) -> None:
    window, now, log = FixedWindow(requests, 5.0), 0.0, list[float]()
    for wait in waits:
        now += wait
        if window.admit("user", now).allowed:
            log.append(now)
    assert max(Counter(time // 5.0 for time in log).values(), default=0) <= requests


@given(st.lists(st.floats(0, 4), max_size=150), limits)
def test_a_bucket_lets_through_no_more_than_its_size_and_its_flow(waits: list[float], requests: int) -> None:
    bucket, now, log = TokenBucket(requests, 5.0), 0.0, list[float]()
    for wait in waits:
        now += wait
        if bucket.admit("user", now).allowed:
            log.append(now)
    for first, start in enumerate(log):
        for last in range(first, len(log)):
            assert last - first + 1 <= requests + (log[last] - start) * requests / 5.0 + 1e-4


def test_a_bucket_flows_evenly_after_its_burst() -> None:
    bucket = TokenBucket(10, 60.0)
    assert admitted(bucket, "user", 0, 99) == 10
    assert [admitted(bucket, "user", 6.0 * number, 9) for number in (1, 2, 3)] == [1, 1, 1]
    assert admitted(bucket, "user", 1000, 99) == 10


@every_limiter
@pytest.mark.parametrize("requests", [1000, 1])
def test_idle_keys_leave_while_others_are_admitted_or_refused(name: str, requests: int) -> None:
    limiter = LIMITERS[name](requests, 10.0)
    for number in range(3000):
        limiter.admit(f"user-{number}", 0.001 * number)
    assert len(limiter) == 3000
    for number in range(3100):
        limiter.admit("busy", 25 + 0.02 * number)
    assert len(limiter) == 1


@every_limiter
def test_idle_keys_leave_even_when_nobody_asks_any_more(name: str) -> None:
    limiter = LIMITERS[name](5, 10.0)
    for number in range(3000):
        limiter.admit(f"user-{number}", 1.0)
    for tick in range(12):
        limiter.sweep(12.0 + 10 * tick, 1000)
    assert len(limiter) == 0


@pytest.mark.parametrize("requests", [3, 100, 1000])
def test_a_sliding_window_remembers_no_more_times_than_its_limit(requests: int) -> None:
    window = SlidingWindow(requests, 1.0)
    for number in range(5 * requests):
        window.admit("user", 0.7 * number / requests)
        packed = window._keys.get("user")
        assert packed is not None
        assert len(packed) <= 8 * requests


@given(st.lists(st.tuples(gaps, st.sampled_from("abcdefgh")), max_size=150))
def test_a_key_put_within_its_time_is_always_found(steps: list[tuple[float, str]]) -> None:
    recent, now, put = ExpiringKeys[float](5.0), 0.0, dict[str, float]()
    for gap, key in steps:
        now += gap
        for name, when in put.items():
            if now - when < 5.0:
                assert recent.get(name) == when
        recent.put(key, now, now)
        put[key] = now
        assert len(recent) == sum(recent.get(name) is not None for name in put)


def test_more_keys_than_there_may_be_push_out_old_ones_not_each_new_one() -> None:
    recent = ExpiringKeys[int](60.0, most=100)
    for number in range(1000):
        recent.put(str(number), number, 0.0)
        assert recent.get(str(number)) == number
        assert len(recent) <= 101


def test_new_settings_are_in_force_at_once() -> None:
    window = SlidingWindow(5, 10.0)
    assert admitted(window, "user", 0, 9) == 5
    window.update(7, 10.0)
    assert admitted(window, "user", 1, 9) == 2
    window.update(2, 10.0)
    assert window.peek("user", 2) == (False, 0, 9, 9)  # until one of the two newest has left
    window.update(2, 1.5)
    assert admitted(window, "user", 2, 9) == 0
    assert admitted(window, "user", 2.5, 9) == 2
    assert repr(window) == "<SlidingWindow 2 per 1.5 s, 1 keys>"


@every_limiter
@pytest.mark.parametrize(("requests", "window_s"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, float("nan"))])
def test_limits_of_nothing_are_refused(name: str, requests: int, window_s: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        LIMITERS[name](requests, window_s)


@every_limiter
@given(st.lists(st.tuples(gaps, st.integers(0, 2)), max_size=60), limits)
def test_gateways_that_tell_each_other_everything_are_as_exact_as_one(
    name: str, steps: list[tuple[float, int]], requests: int
) -> None:
    gateways = [LIMITERS[name](requests, 10.0, shared=True) for _ in range(3)]
    single, now = LIMITERS[name](requests, 10.0), 0.0
    for gap, turn in steps:
        now += gap
        assert gateways[turn].admit("user", now) == single.admit("user", now)
        for key, time in gateways[turn].drain_admissions():
            for other in gateways:
                if other is not gateways[turn]:
                    other.absorb(key, [time], now)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 3.0]), st.integers(0, 1)), max_size=80), limits, st.integers(1, 6))
def test_between_exchanges_the_limit_is_exceeded_only_by_what_arrived_elsewhere_and_nobody_is_refused_below_it(
    steps: list[tuple[float, int]], requests: int, exchange_every: int
) -> None:
    gateways = [SlidingWindow(requests, 10.0, shared=True) for _ in range(2)]
    now, log, untold = 0.0, list[float](), [list[float](), list[float]()]
    for number, (gap, turn) in enumerate(steps):
        now += gap
        recent = sum(time > now - 10 for time in log)
        hidden = sum(time > now - 10 for time in untold[1 - turn])
        decision = gateways[turn].admit("user", now)
        assert decision.allowed or recent >= requests
        assert not decision.allowed or recent - hidden < requests
        if decision.allowed:
            log.append(now)
            untold[turn].append(now)
        if number % exchange_every == 0:
            drained = [gateway.drain_admissions() for gateway in gateways]
            assert [[time for _, time in each] for each in drained] == untold
            gateways[0].absorb("user", untold[1], now)
            gateways[1].absorb("user", reversed(untold[0]), now)
            untold = [[], []]


@every_limiter
def test_one_that_shares_with_nobody_keeps_no_record_for_others(name: str) -> None:
    limiter = LIMITERS[name](5, 10.0)
    limiter.admit("user", 0)
    assert limiter.drain_admissions() == []
    shared = LIMITERS[name](5, 10.0, shared=True)
    shared.admit("user", 0)
    shared.absorb("user", [0.5], 1.0)
    assert shared.drain_admissions() == [("user", 0)]  # what was absorbed is not told again
    assert shared.drain_admissions() == []


@every_limiter
def test_times_from_the_future_count_as_now_and_long_gone_ones_not_at_all(name: str) -> None:
    limiter = LIMITERS[name](2, 10.0)
    limiter.absorb("user", [99.0], 5.0)
    limiter.absorb("other", [-50.0, -60.0], 5.0)
    limiter.absorb("nobody", [], 5.0)
    assert admitted(limiter, "user", 5.0, 9) == 1
    assert admitted(limiter, "other", 5.0, 9) == 2
    assert admitted(limiter, "user", 15.0, 9) == 2
    assert len(limiter) == 2


@given(st.lists(st.tuples(gaps, st.integers(0, 2)), max_size=60))
def test_a_request_counts_with_all_limits_or_with_none(steps: list[tuple[float, int]]) -> None:
    everybody, per_user, now = SlidingWindow(5, 10.0), SlidingWindow(2, 20.0), 0.0
    log: list[tuple[float, int]] = []
    for gap, user in steps:
        now += gap
        free = 5 - sum(time > now - 10 for time, _ in log)
        free_for_user = 2 - sum(time > now - 20 and whose == user for time, whose in log)
        verdict = admit_all([(everybody, ""), (per_user, str(user))], now)
        assert verdict is not None
        assert verdict.decision.allowed is (free > 0 and free_for_user > 0)
        if verdict.decision.allowed:
            log.append((now, user))
            assert verdict.decision.remaining == min(free, free_for_user) - 1
        else:
            assert verdict.decision.remaining == 0


def test_the_tightest_of_several_limits_speaks_for_all() -> None:
    minute, hour = SlidingWindow(2, 60.0), SlidingWindow(3, 3600.0)
    both = [(minute, "user"), (hour, "user")]
    assert [admit_all(both, 0), admit_all(both, 0)] == [((True, 1, 0, 60), minute), ((True, 0, 0, 60), minute)]
    assert admit_all(both, 30) == ((False, 0, 30, 30), minute)
    assert admit_all(both, 60) == ((True, 0, 0, 3540), hour)
    assert admit_all(both, 90) == ((False, 0, 3510, 3510), hour)
    assert minute.peek("user", 90).remaining == 0
    assert admit_all([], 0) is None


@pytest.mark.parametrize(
    ("decision", "fields"),
    [
        (
            Decision(False, 0, 11.2, 11.2),
            {"RateLimit-Policy": '"default";q=100;w=60', "RateLimit": '"default";r=0;t=12', "Retry-After": "12"},
        ),
        (
            Decision(False, 0, 0.003, 0.003),
            {"RateLimit-Policy": '"default";q=100;w=60', "RateLimit": '"default";r=0;t=1', "Retry-After": "1"},
        ),
        (
            Decision(True, 99, 0.0, 60.0000000001),
            {"RateLimit-Policy": '"default";q=100;w=60', "RateLimit": '"default";r=99;t=60'},
        ),
    ],
)
def test_headers_are_those_of_the_draft(decision: Decision, fields: dict[str, str]) -> None:
    assert headers(decision, 100, 60.0) == fields


def test_a_window_shorter_than_a_second_is_told_as_one_and_a_limit_may_have_a_name() -> None:
    fields = headers(Decision(True, 4, 0.0, 0.2), 5, 0.25, name="user_id")
    assert fields == {"RateLimit-Policy": '"user_id";q=5;w=1', "RateLimit": '"user_id";r=4;t=1'}


@given(st.text(max_size=200), st.text(max_size=200))
def test_long_names_become_short_keys_and_stay_apart(one: str, other: str) -> None:
    assert (key_of(one) == key_of(other)) is (one == other)
    assert len(key_of(one * 50)) <= 65
    assert key_of(one * 50 + "x" * 100) != key_of(other)


def test_a_name_that_is_no_proper_text_is_a_key_all_the_same() -> None:
    assert key_of("\ud800" * 100) != key_of("?" * 100)


def test_a_million_keys_with_ten_requests_each_take_less_than_500_mb() -> None:
    """In a process of its own, less what Python takes without them. The other strategies remember less."""
    code = """
import resource
from policies.rate_limit import LIMITERS, MOST_KEYS
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if __import__("sys").platform == "darwin" else 1024)
before, limiter, times = used(), LIMITERS["sliding-window"](10, 3600.0), [float(number) for number in range(10)]
for number in range(1_000_000):
    limiter.absorb(f"user-{number:032d}", times, 10.0)
assert len(limiter) == MOST_KEYS == 1_000_000 and not limiter.peek("user-" + "7".zfill(32), 10.0).allowed
for number in range(100_000):  # beyond that, the oldest leave
    limiter.absorb(f"more-{number:032d}", times, 10.0)
assert len(limiter) <= MOST_KEYS + 1
print(used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500e6
