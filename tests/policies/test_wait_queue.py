"""Wait queue: first come, first served, never longer than allowed, no request granted after its deadline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from policies.wait_queue import ANY, KEPT_GAPS, MAX_S, MIN_S, UNKNOWN_S, Waiter, WaitQueue


def joined(queue: WaitQueue[str], wake: str, now: float = 0.0, timeout_s: float = 30.0) -> Waiter[str]:
    waiter = queue.join(now, timeout_s, wake)
    assert waiter is not None
    return waiter


def granted(queue: WaitQueue[str], now: float) -> str | None:
    waiter = queue.grant(now)
    return None if waiter is None else waiter.wake


def test_first_come_first_served() -> None:
    queue = WaitQueue[str](10)
    for name in "abc":
        joined(queue, name)
    assert [granted(queue, 1) for _ in range(4)] == ["a", "b", "c", None]


def test_the_queue_is_no_longer_than_allowed_and_takes_more_when_it_moves() -> None:
    queue = WaitQueue[str](2)
    joined(queue, "a")
    joined(queue, "b")
    assert queue.join(0, 30, "c") is None
    assert repr(queue) == "<WaitQueue 2 of 2 waiting>"
    queue.grant(1)
    joined(queue, "d", now=1)
    assert queue.join(1, 30, "e") is None


def test_after_a_pause_every_waiter_has_as_long_left_as_before() -> None:
    queue = WaitQueue[str](10)
    joined(queue, "a", timeout_s=5)
    joined(queue, "b", timeout_s=2)
    left = joined(queue, "left", timeout_s=1)
    queue.leave(left)
    queue.postpone(40)
    assert queue.deadline() == 42
    assert queue.expire(41.9) == [] and [waiter.wake for waiter in queue.expire(42)] == ["b"]
    assert granted(queue, 44.9) == "a"
    assert queue.retry_after_s(45) <= 5, "the pause says nothing of the pace of the queue"


def test_a_lower_maximum_removes_no_waiting_request() -> None:
    queue = WaitQueue[str](3)
    for name in "abc":
        joined(queue, name)
    queue.max_waiting = 1
    assert [granted(queue, 1), granted(queue, 1)] == ["a", "b"]
    assert queue.join(1, 30, "d") is None


def test_a_queue_of_length_0_refuses_at_once() -> None:
    assert WaitQueue[str](0).join(0, 30, "a") is None


def test_a_waiter_that_left_is_passed_over_and_may_leave_twice() -> None:
    queue = WaitQueue[str](10)
    first, second = joined(queue, "a"), joined(queue, "b")
    queue.leave(first)
    queue.leave(first)
    assert len(queue) == 1
    assert queue.grant(1) is second
    queue.leave(second)
    assert len(queue) == 0


def test_no_request_is_granted_capacity_at_or_after_its_deadline() -> None:
    queue = WaitQueue[str](10)
    joined(queue, "a", timeout_s=5)
    joined(queue, "b", timeout_s=9)
    assert granted(queue, 5) == "b"
    assert [waiter.wake for waiter in queue.expire(5)] == ["a"]
    assert queue.deadline() is None


def test_expired_requests_are_listed_in_order_of_their_deadlines() -> None:
    queue = WaitQueue[str](10)
    joined(queue, "slow", timeout_s=9)
    joined(queue, "quick", timeout_s=2)
    joined(queue, "later", timeout_s=60)
    assert queue.deadline() == 2
    assert queue.expire(1.9) == []
    assert [waiter.wake for waiter in queue.expire(10)] == ["quick", "slow"]
    assert (len(queue), queue.deadline()) == (1, 60)


def test_a_new_request_sees_whether_another_one_waits_and_is_in_time() -> None:
    queue = WaitQueue[str](10)
    joined(queue, "a", timeout_s=5)
    assert queue.ahead(1)
    assert not queue.ahead(5)
    assert not WaitQueue[str](10).ahead(1)


def test_waiters_that_join_and_leave_behind_one_that_stays_take_no_memory() -> None:
    queue = WaitQueue[str](100)
    joined(queue, "stays")
    for number in range(20_000):
        queue.leave(joined(queue, str(number)))
    assert len(queue._deadlines) <= KEPT_GAPS + 3
    assert len(queue._lanes[ANY]) == 1
    assert granted(queue, 1) == "stays"
    assert not queue._lanes


def test_capacity_goes_to_the_earliest_request_that_can_use_it() -> None:
    queue = WaitQueue[str](10)
    for wake, lane in (("home 1", "instance-1"), ("any", ANY), ("home 2", "instance-2"), ("any too", ANY)):
        assert queue.join(0, 30, wake, lane) is not None
    granted_in_turn = [queue.grant(1, (ANY, lane)) for lane in ("instance-2", "instance-2", "instance-1", "instance-1")]
    assert [waiter.wake for waiter in granted_in_turn if waiter] == ["any", "home 2", "home 1", "any too"]
    assert queue.grant(1, ("instance-1", ANY)) is None and not queue.lanes


def test_a_new_request_waits_behind_those_that_wait_for_the_same_capacity_only() -> None:
    queue = WaitQueue[str](10)
    queue.join(0, 5, "a", "instance-1")
    assert not queue.ahead(1) and not queue.ahead(1, (ANY, "instance-2"))
    assert queue.ahead(1, (ANY, "instance-1")) and not queue.ahead(5, (ANY, "instance-1"))


def test_retry_after_is_the_time_the_queue_takes_at_its_pace() -> None:
    queue = WaitQueue[str](100)
    for number in range(30):
        joined(queue, str(number))
    assert queue.retry_after_s(0) == UNKNOWN_S
    for number in range(20):
        queue.grant(0.5 * (number + 1))
    assert queue.retry_after_s(10) == pytest.approx(11 * 0.5)


def test_a_queue_that_stands_still_raises_retry_after_and_time_without_a_queue_does_not_count() -> None:
    queue = WaitQueue[str](100)
    joined(queue, "a")
    queue.grant(2)
    joined(queue, "b", now=5000)
    assert queue.retry_after_s(5000) == pytest.approx(2 * 2)
    assert queue.retry_after_s(5020) == pytest.approx(2 * 11)
    assert queue.retry_after_s(9000) == MAX_S


def test_retry_after_is_at_least_a_second() -> None:
    queue = WaitQueue[str](9)
    joined(queue, "a")
    queue.grant(0.001)
    assert queue.retry_after_s(0.002) == MIN_S


class AgainstAPlainList(RuleBasedStateMachine):
    """The same line, kept as a list that is searched from its front."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: WaitQueue[int] = WaitQueue(6)
        self.line: list[Waiter[int]] = []
        self.known: list[Waiter[int]] = []
        self.now = 0.0

    @rule(passed=st.sampled_from([0.0, 0.5, 3.0]))
    def wait(self, passed: float) -> None:
        self.now += passed

    @rule(timeout_s=st.integers(1, 9))
    def join(self, timeout_s: int) -> None:
        waiter = self.queue.join(self.now, timeout_s, len(self.known))
        assert (waiter is None) is (len(self.line) == 6)
        if waiter is not None:
            self.line.append(waiter)
            self.known.append(waiter)

    @rule(choice=st.integers(0, 99))
    def leave(self, choice: int) -> None:
        if self.known:
            waiter = self.known[choice % len(self.known)]
            self.queue.leave(waiter)
            self.line = [each for each in self.line if each is not waiter]

    @rule()
    def grant(self) -> None:
        in_time = [waiter for waiter in self.line if waiter.deadline > self.now]
        assert self.queue.ahead(self.now) is bool(in_time)
        chosen = self.queue.grant(self.now)
        assert chosen is (in_time[0] if in_time else None)
        self.line = [waiter for waiter in self.line if waiter is not chosen]

    @rule()
    def expire(self) -> None:
        late = self.queue.expire(self.now)
        assert {waiter.ticket for waiter in late} == {each.ticket for each in self.line if each.deadline <= self.now}
        self.line = [waiter for waiter in self.line if waiter.deadline > self.now]

    @invariant()
    def same_length_and_next_deadline(self) -> None:
        assert len(self.queue) == len(self.line)
        assert self.queue.deadline() == min((waiter.deadline for waiter in self.line), default=None)
        assert MIN_S <= self.queue.retry_after_s(self.now) <= MAX_S


AgainstAPlainList.TestCase.settings = hypothesis_settings(deadline=None, max_examples=50)
TestAgainstAPlainList = AgainstAPlainList.TestCase


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=60))
def test_arrivals_are_served_in_order_without_exception(gaps: list[float]) -> None:
    queue, now = WaitQueue[int](100), 0.0
    for number, gap in enumerate(gaps):
        now += gap
        assert queue.join(now, 1e9, number) is not None
    served = [waiter.wake for _ in gaps if (waiter := queue.grant(now)) is not None]
    assert served == list(range(len(gaps)))


def test_a_request_whose_capacity_turned_out_to_be_none_waits_at_the_front_again() -> None:
    queue: WaitQueue[str] = WaitQueue(5)
    for name in ("first", "second"):
        queue.join(0.0, 10.0, name)
    granted = queue.grant(1.0)
    assert granted is not None and granted.wake == "first"
    again = queue.rejoin(granted, "first, again")
    assert (again.ticket, again.deadline, len(queue)) == (granted.ticket, granted.deadline, 2)
    assert queue.deadline() == 10.0
    assert [waiter.wake for _ in range(2) if (waiter := queue.grant(2.0))] == ["first, again", "second"]
    assert queue.grant(3.0) is None


def test_a_request_that_waits_again_expires_at_its_first_deadline() -> None:
    queue: WaitQueue[str] = WaitQueue(5)
    queue.join(0.0, 10.0, "a")
    granted = queue.grant(1.0)
    assert granted is not None
    queue._gaps.clear()
    queue.rejoin(granted, "again")
    assert [waiter.wake for waiter in queue.expire(10.0)] == ["again"]
