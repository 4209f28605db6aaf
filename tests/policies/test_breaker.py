"""Breaker: opens after failures in a row, one probe at a time, old results ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.breaker import HEAD_START_S, LONGEST_S, Breaker, BreakerUpdate

CASES = json.loads((Path(__file__).parents[1] / "cases" / "breaker.json").read_text())["cases"]


def opened(now: float = 0.0, failure_threshold: int = 5, reset_timeout_s: float = 60.0) -> Breaker:
    breaker = Breaker(failure_threshold, reset_timeout_s)
    fail(breaker, now, failure_threshold)
    assert breaker.state == "open"
    return breaker


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.record(False, now, breaker.generation)


def probe(breaker: Breaker, now: float, ok: bool) -> None:
    assert breaker.allow(now)
    assert breaker.record(ok, now, breaker.generation)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_cycle_is_gobreakers(case: dict[str, Any]) -> None:
    breaker = Breaker(failure_threshold=5, reset_timeout_s=60)
    for now, step, value in case["steps"]:
        if step in ("ok", "fail"):
            for _ in range(value):
                breaker.record(step == "ok", now, breaker.generation)
        elif step == "state":
            assert breaker.state == value
        else:
            assert breaker.may(now) is value
            assert breaker.allow(now) is value


def test_a_success_in_between_forgives() -> None:
    breaker = Breaker(3, 60)
    for _ in range(10):
        fail(breaker, 0, 2)
        breaker.record(True, 0, breaker.generation)
    assert repr(breaker) == "<Breaker closed, 0 of 3 failures>"


def test_it_stays_open_twice_as_long_after_each_failed_probe_up_to_five_minutes() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(6):
        waits.append(breaker.retry_after_s(now))
        now += waits[-1]
        assert not breaker.allow(now - 0.001)
        probe(breaker, now, ok=False)
    assert waits == [60, 120, 240, 300, 300, 300]


def test_the_doubling_ends_with_recovery() -> None:
    breaker = opened()
    probe(breaker, 60, ok=False)
    probe(breaker, 180, ok=True)
    fail(breaker, 200, 5)
    assert breaker.retry_after_s(200) == 60


def test_doubling_for_ever_does_no_harm_and_a_longer_reset_timeout_is_obeyed() -> None:
    breaker, now = opened(reset_timeout_s=2 * LONGEST_S), 0.0
    for _ in range(2000):
        assert breaker.retry_after_s(now) == 2 * LONGEST_S
        now += 2 * LONGEST_S
        probe(breaker, now, ok=False)


def test_results_of_before_the_last_change_are_ignored() -> None:
    breaker = Breaker(5, 60)
    early = breaker.generation
    fail(breaker, 0, 5)
    assert not breaker.record(True, 1, early)
    assert breaker.allow(60)
    assert not breaker.record(True, 61, early)
    assert not breaker.record(False, 61, early)
    assert breaker.record(True, 61, breaker.generation)
    assert not any(breaker.record(False, 62, early) for _ in range(9))
    assert breaker.state == "closed"


def test_an_abandoned_probe_leaves_its_place_to_the_next_and_is_heard_no_more() -> None:
    breaker = opened()
    assert breaker.allow(60)
    gone = breaker.generation
    breaker.abandon(gone)
    assert breaker.may(60)
    assert not breaker.record(False, 60, gone)
    assert breaker.allow(60)
    breaker.abandon(gone)
    assert not breaker.may(60)
    assert repr(breaker) == "<Breaker half-open, probing>"


def test_a_request_abandoned_while_closed_is_neither_failure_nor_success() -> None:
    breaker = Breaker(2, 60)
    fail(breaker, 0)
    breaker.abandon(breaker.generation)
    fail(breaker, 0)
    assert breaker.state == "open"


def test_what_was_sent_without_leave_while_open_says_nothing() -> None:
    breaker = opened()
    assert not breaker.record(True, 1, breaker.generation)
    assert breaker.state == "open"


def test_it_says_when_asking_again_makes_sense() -> None:
    breaker = Breaker(1, 60)
    assert breaker.retry_after_s(5) == 0
    fail(breaker, 5)
    assert breaker.retry_after_s(25) == 40
    assert breaker.retry_after_s(70) == 0
    assert repr(breaker) == "<Breaker open, until 65 s>"


def test_the_gateway_that_tripped_probes_first_and_its_verdict_spares_the_others_theirs() -> None:
    one, other = opened(now=0.0), Breaker(5, 60)
    assert other.merge_remote(one.report(0.4), 1000.4)  # clocks of their own
    assert one.may(60)
    assert not other.may(1060)
    assert other.retry_after_s(1060) == pytest.approx(HEAD_START_S)
    probe(one, 60, ok=True)
    assert other.merge_remote(one.report(60.2), 1060.2)
    assert other.state == "closed"


def test_a_failed_probe_elsewhere_counts_here() -> None:
    one, other = opened(), opened()
    probe(one, 60, ok=False)
    assert not other.merge_remote(one.report(60.1), 60.1)  # it was open, it stays open, but longer
    assert other.retry_after_s(60.1) == pytest.approx(119.9 + HEAD_START_S)
    probe(other, 182, ok=False)
    assert other.retry_after_s(182) == 240


def test_news_that_come_twice_or_late_change_nothing() -> None:
    one, other = opened(), Breaker(5, 60)
    news = one.report(0)
    assert other.merge_remote(news, 0)
    until = other.retry_after_s(0)
    for late in (0.5, 3, 40):
        assert not other.merge_remote(news, late)
        assert other.retry_after_s(late) == until - late
    assert other.allow(62)
    other.abandon(other.generation)
    assert not other.merge_remote(news, 62)
    assert other.state == "half-open"
    assert not other.merge_remote(BreakerUpdate("half-open"), 62)


def test_a_probe_under_way_is_not_disturbed_by_a_trip_elsewhere() -> None:
    breaker = opened()
    assert breaker.allow(60)
    assert not breaker.merge_remote(BreakerUpdate("open", 120, 1), 60.1)
    assert breaker.record(True, 60.2, breaker.generation)
    assert breaker.state == "closed"


def test_a_recovery_elsewhere_closes_but_not_what_has_only_just_tripped() -> None:
    breaker = opened(now=10.0)
    assert not breaker.merge_remote(BreakerUpdate("closed"), 10.5)
    assert breaker.merge_remote(BreakerUpdate("closed"), 11.5)
    assert not breaker.merge_remote(BreakerUpdate("closed"), 12)


def test_new_settings_are_in_force_at_once() -> None:
    breaker = opened()
    breaker.update(2, 10, 5)
    assert breaker.retry_after_s(5) == 10
    breaker.update(2, 100, 6)
    assert breaker.retry_after_s(6) == 9
    probe(breaker, 15, ok=True)
    fail(breaker, 16, 2)
    assert breaker.retry_after_s(16) == 100


@pytest.mark.parametrize(("failure_threshold", "reset_timeout_s"), [(0, 60), (5, 0), (5, -1), (5, float("nan"))])
def test_settings_that_make_no_sense_are_refused(failure_threshold: int, reset_timeout_s: float) -> None:
    with pytest.raises(ValueError, match="is not"):
        Breaker(failure_threshold, reset_timeout_s)


steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "ok", "fail", "fail", "abandon", "closed news", "open news", "wait"]),
        st.integers(0, 9),
        st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    ),
    max_size=120,
)


@given(steps, st.integers(1, 3))
def test_never_two_probes_never_allowed_before_its_time_and_stale_results_change_nothing(
    history: list[tuple[str, int, float]], failure_threshold: int
) -> None:
    breaker, now = Breaker(failure_threshold, 5.0), 0.0
    sent: list[int] = []  # generations of requests that have not ended
    probing: int | None = None
    for step, choice, passed in history:
        now += passed
        before = breaker.state
        wait_s = breaker.retry_after_s(now)
        if step == "send":
            expected = breaker.may(now)
            assert breaker.allow(now) is expected
            if expected:
                assert wait_s == 0
                sent.append(breaker.generation)
                if before != "closed":
                    assert probing is None
                    probing = breaker.generation
            else:
                assert probing is not None or wait_s > 0
        elif step in ("ok", "fail", "abandon") and sent:
            generation = sent.pop(choice % len(sent))
            stale = generation != breaker.generation
            kept = (breaker.state, breaker.generation, repr(breaker))
            if step == "abandon":
                breaker.abandon(generation)
            else:
                assert breaker.record(step == "ok", now, generation) is (breaker.state != before)
            if stale:
                assert (breaker.state, breaker.generation, repr(breaker)) == kept
            elif generation == probing:
                probing = None
                assert breaker.state == {"ok": "closed", "fail": "open", "abandon": "half-open"}[step]
        elif step == "closed news" and breaker.merge_remote(BreakerUpdate("closed"), now):
            probing = None
        elif step == "open news":
            breaker.merge_remote(BreakerUpdate("open", float(choice), choice % 3), now)
        assert breaker.retry_after_s(now) <= LONGEST_S


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_closed_it_opens_exactly_at_that_many_failures_in_a_row(results: list[bool], failure_threshold: int) -> None:
    breaker, in_a_row = Breaker(failure_threshold, 60), 0
    for ok in results:
        in_a_row = 0 if ok else in_a_row + 1
        changed = breaker.record(ok, 0, breaker.generation)
        assert changed is (in_a_row == failure_threshold)
        if changed:
            return


@given(st.integers(0, 20), st.floats(0, 1e6))
def test_service_resumes_by_itself_after_any_outage(failed_probes: int, start: float) -> None:
    breaker, now = opened(start, reset_timeout_s=5), start
    for _ in range(failed_probes):
        now += breaker.retry_after_s(now) + 0.001
        probe(breaker, now, ok=False)
    probe(breaker, now + LONGEST_S + 0.001, ok=True)
    assert breaker.state == "closed"
