"""Rollout: which version a session or a request gets, and what the analysis says."""

from __future__ import annotations

import re
from itertools import accumulate, pairwise
from math import ceil, floor, sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rollout import Judgement, Turns, VersionStats, in_canary, judge, next_step

SESSIONS = [("my-agent", f"session-{n}") for n in range(10_000)]
PERCENT = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)


def test_raising_10_25_50_moves_each_of_10000_sessions_at_most_once_and_only_to_the_canary() -> None:
    for key in SESSIONS:
        seen = [in_canary(key, percent) for percent in (10, 25, 50)]
        assert all(before <= after for before, after in pairwise(seen))


@pytest.mark.parametrize("percent", [0.5, 1, 10, 25, 50, 90])
def test_the_canarys_share_of_sessions_is_what_chance_would_give_it(percent: float) -> None:
    share = percent / 100
    expected, deviation = len(SESSIONS) * share, sqrt(len(SESSIONS) * share * (1 - share))
    assert abs(sum(in_canary(key, percent) for key in SESSIONS) - expected) < 4 * deviation


@given(st.text(), st.text(), PERCENT, PERCENT)
def test_a_session_of_the_canary_stays_there_when_more_is_given_to_it(
    agent: str, session: str, one: float, other: float
) -> None:
    key = (agent, session)
    assert in_canary(key, min(one, other)) <= in_canary(key, max(one, other))
    assert not in_canary(key, 0)
    assert in_canary(key, 100)


def test_two_agents_do_not_have_the_same_sessions_in_their_canaries() -> None:
    both = sum(in_canary(("a", f"s{n}"), 50) and in_canary(("b", f"s{n}"), 50) for n in range(10_000))
    assert 2300 < both < 2700


@pytest.mark.parametrize(("percent", "expected"), [(10, 100), (25, 250), (0.1, 1), (33.3, 333), (0, 0), (100, 1000)])
def test_of_1000_requests_without_a_session_exactly_the_percentage_goes_to_the_canary(percent: float, expected: int) -> None:
    for seed in range(50):
        turns = Turns(percent, Random(seed))
        assert sum(turns.canary() for _ in range(1000)) == expected


def test_a_hundredth_of_a_percent_is_one_in_10000() -> None:
    turns = Turns(0.01, Random(1))
    assert sum(turns.canary() for _ in range(10_000)) == 1


@given(PERCENT, st.integers(), st.integers(1, 500))
def test_any_stretch_of_requests_has_the_canarys_share_rounded_up_or_down(percent: float, seed: int, length: int) -> None:
    turns = Turns(percent, Random(seed))
    sums = [0, *accumulate(turns.canary() for _ in range(1000))]
    stretches = {after - before for before, after in zip(sums, sums[length:], strict=False)}
    exact = length * round(percent * 100) / 10_000
    assert stretches <= {floor(exact), ceil(exact)}


@given(st.lists(st.tuples(PERCENT, st.integers(1, 50)), min_size=1), st.integers())
def test_however_often_the_percentage_changes_nothing_is_made_up_for(changes: list[tuple[float, int]], seed: int) -> None:
    turns = Turns(changes[0][0], Random(seed))
    got = due = 0.0
    for percent, requests in changes:
        turns.update(percent)
        got += sum(turns.canary() for _ in range(requests))
        due += requests * percent / 100
        assert abs(got - due) < 1 + 1e-6


def test_gateways_start_at_different_phases() -> None:
    firsts = set()
    for seed in range(50):
        turns = Turns(10, Random(seed))
        firsts.add([turns.canary() for _ in range(10)].index(True))
    assert len(firsts) == 10


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_a_percentage_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="is not from 0 to 100"):
        Turns(percent)


GOOD = VersionStats(1000, 0, 100)


def judged(canary: VersionStats, stable: VersionStats = GOOD) -> Judgement:
    return judge(canary, stable, max_error_rate=5, max_latency_ratio=1.5, min_requests=50)


@pytest.mark.parametrize(
    ("canary", "stable", "verdict", "reason"),
    [
        (
            VersionStats(50, 0, 100),
            GOOD,
            "better-or-equal",
            "0 % errors in 50 requests; the canary takes 100 ms, the stable version 100 ms",
        ),
        (VersionStats(100, 0, 100, crashes=1), GOOD, "inconclusive", "has crashed once"),
        (VersionStats(100, 6, 100, crashes=1), GOOD, "worse", "requests failed"),
        (VersionStats(0, 0, crashes=2), GOOD, "worse", "has crashed 2 times in a row"),
        (VersionStats(100, 0, 100, crashes=2), VersionStats(1000, 0, 100, crashes=2), "better-or-equal", "0 % errors"),
        (VersionStats(100, 5, 150), GOOD, "better-or-equal", "5 % errors"),
        (VersionStats(100, 6, 100), GOOD, "worse", "6 % of the canary's 100 requests failed (allowed: 5 %)"),
        (
            VersionStats(100, 0, 151),
            GOOD,
            "worse",
            "the canary takes 151 ms, the stable version 100 ms: more than 1.5 times as long",
        ),
        (VersionStats(49, 49, 999), GOOD, "inconclusive", "the canary has answered 49 of the 50 requests needed"),
        (
            VersionStats(100, 0, 100),
            VersionStats(49, 0, 100),
            "inconclusive",
            "the stable version has answered 49 of the 50 requests needed",
        ),
        (VersionStats(100, 10, 100), VersionStats(100, 10, 100), "inconclusive", "the stable version fails as often (10 %)"),
        (VersionStats(100, 50, 100), VersionStats(0, 0), "worse", "50 % of the canary's 100 requests failed"),
        (
            VersionStats(5, 5, None, is_tripped=True),
            GOOD,
            "worse",
            "(allowed: 5 %), and all its circuit breakers are open",
        ),
        (VersionStats(40, 1, 100, is_tripped=True), GOOD, "inconclusive", "the circuit breakers of all the canary's instances"),
        (VersionStats(100, 0), GOOD, "inconclusive", "the latency of the canary is not known"),
        (VersionStats(100, 0, 100), VersionStats(100, 0), "inconclusive", "the latency of the stable version is not known"),
    ],
)
def test_the_analysis_says_what_it_found_and_why(canary: VersionStats, stable: VersionStats, verdict: str, reason: str) -> None:
    found = judged(canary, stable)
    assert found.verdict == verdict
    assert reason in found.reason


@given(st.integers(0, 49), st.integers(0, 49), st.one_of(st.none(), st.floats(0, 1e6)))
def test_too_few_requests_never_promote_and_never_roll_back(requests: int, errors: int, latency_ms: float | None) -> None:
    assert judged(VersionStats(requests, min(errors, requests), latency_ms)).verdict == "inconclusive"


@given(st.integers(50, 500), st.integers(0, 500), st.floats(0, 1e4))
def test_a_canary_that_did_exactly_as_stable_is_never_worse(requests: int, errors: int, latency_ms: float) -> None:
    seen = VersionStats(requests, min(errors, requests), latency_ms)
    assert judged(seen, seen).verdict != "worse"


@pytest.mark.parametrize(("percent", "step"), [(0, 10), (10, 25), (12, 25), (50, 100), (100, None)])
def test_the_next_step_is_the_first_above_where_it_is(percent: float, step: float | None) -> None:
    assert next_step((10, 25, 50, 100), percent) == step


def test_steps_that_end_below_100_end_there() -> None:
    assert next_step((10, 25), 25) is None


def test_turns_show_the_share_and_what_is_owed() -> None:
    turns = Turns(25, Random(1))
    assert turns.percent == 25
    assert re.fullmatch(r"<Turns 25 % canary, 0\.\d\d requests owed>", repr(turns))
