from __future__ import annotations

import pytest

from policies.lifecycle.draining import SETTLE_S, Drain, DrainTerms

TERMS = DrainTerms(request_timeout_s=60, drain_timeout_s=600, keep_sessions=True)
NOBODY_STAYS = DrainTerms(request_timeout_s=60, drain_timeout_s=600, keep_sessions=False)


@pytest.mark.parametrize("terms", [TERMS, NOBODY_STAYS])
def test_until_the_gateways_have_heard_of_it_every_request_is_taken(terms: DrainTerms) -> None:
    drain = Drain(terms, began=100)
    assert drain.takes_requests(100 + SETTLE_S - 0.01, session_at=None)
    assert drain.takes_requests(100 + SETTLE_S - 0.01, session_at=100)


def test_without_any_session_it_refuses_as_soon_as_the_gateways_have_heard() -> None:
    assert not Drain(TERMS, began=100).takes_requests(100 + SETTLE_S, session_at=None)


def test_without_affinity_a_session_that_was_just_seen_keeps_nobody() -> None:
    assert not Drain(NOBODY_STAYS, began=100).takes_requests(100 + SETTLE_S, session_at=101)


def test_a_session_that_goes_on_is_kept_until_the_deadline_and_no_longer() -> None:
    drain = Drain(TERMS, began=100)
    for second in range(101, 160):
        assert drain.takes_requests(second, session_at=second - 0.1)
    assert not drain.takes_requests(160, session_at=159.9)


def test_a_session_that_fell_silent_is_waited_for_half_the_request_timeout() -> None:
    drain = Drain(TERMS, began=100)
    assert drain.takes_requests(119.9, session_at=90)
    assert not drain.takes_requests(120, session_at=90)


def test_a_session_of_long_ago_is_not_waited_for() -> None:
    assert not Drain(TERMS, began=100).takes_requests(100 + SETTLE_S, session_at=60)


def test_a_short_drain_timeout_ends_the_waiting_for_sessions_too() -> None:
    drain = Drain(DrainTerms(request_timeout_s=60, drain_timeout_s=5), began=100)
    assert drain.takes_requests(104.9, session_at=104)
    assert not drain.takes_requests(105, session_at=104)


def test_a_request_in_flight_gets_the_request_timeout_from_when_the_drain_began() -> None:
    drain = Drain(TERMS, began=100)
    assert not drain.is_overdue(159.9, arrived=50, answering=False)
    assert drain.is_overdue(160, arrived=50, answering=False)


def test_a_request_of_a_session_taken_meanwhile_gets_it_from_its_own_arrival() -> None:
    drain = Drain(TERMS, began=100)
    assert not drain.is_overdue(200, arrived=150, answering=False)
    assert drain.is_overdue(210, arrived=150, answering=False)


def test_a_stream_goes_on_until_the_drain_timeout() -> None:
    drain = Drain(TERMS, began=100)
    assert not drain.is_overdue(699, arrived=50, answering=True)
    assert drain.is_overdue(700, arrived=50, answering=True)


def test_the_drain_timeout_ends_requests_that_have_not_had_their_own_time() -> None:
    drain = Drain(DrainTerms(request_timeout_s=60, drain_timeout_s=5), began=100)
    assert drain.is_overdue(105, arrived=104, answering=False)


def test_a_drain_timeout_of_zero_cuts_at_once() -> None:
    drain = Drain(DrainTerms(drain_timeout_s=0), began=100)
    assert drain.is_overdue(100, arrived=99, answering=True)


def test_it_says_in_words_how_far_it_goes() -> None:
    assert repr(Drain(TERMS, began=100)) == "<Drain since 100, waits for its sessions, ends at 700>"
    assert repr(Drain(NOBODY_STAYS, began=100)) == "<Drain since 100, waits for nobody, ends at 700>"
