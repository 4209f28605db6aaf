"""What one instance reports of itself: health, capacity, suspicion, a stale report; and the life of a lease on it."""

from __future__ import annotations

import pytest

from cluster.instance_state import InstanceState
from cluster.messages import Member
from deployments.balancing.backend import STALE_S, Backend, Lease, LoadReport
from policies.breaker import Breaker
from policies.load.load_view import LoadView


class Owner:
    """A `LeaseOwner` that writes down what leases report."""

    def __init__(self, generation: int | None = 0) -> None:
        self.generation = generation
        self.reports: list[object] = []

    def sent(self, backend: Backend, now: float) -> int | None:
        return self.generation

    def load_reported(self, backend: Backend, in_flight: int, now: float) -> None:
        self.reports.append(("load", in_flight))

    def judged(self, backend: Backend, ok: bool | None, now: float, generation: int) -> None:
        self.reports.append(("judged", ok))

    def released(self, lease: Lease, status: int | None, now: float) -> None:
        self.reports.append(("released", status))


def backend(state: InstanceState = "healthy", capacity: int = 2, loads: LoadView | None = None) -> Backend:
    member = Member("instance-1", "r1", "127.0.0.1", 9000, "v1", "local", 1, state)
    made = Backend("a", member, loads or LoadView())
    made.update(member, capacity)
    return made


@pytest.mark.parametrize(
    ("state", "passes_checks", "in_service", "reachable"),
    [
        ("starting", False, False, True),
        ("healthy", True, True, True),
        ("unhealthy", False, False, True),
        ("draining", True, False, True),
        ("ejected", False, False, False),
        ("stopped", False, False, False),
    ],
)
def test_a_state_decides_what_an_instance_may_be_asked(
    state: InstanceState, passes_checks: bool, in_service: bool, reachable: bool
) -> None:
    made = backend(state)
    assert (made.passes_checks, made.in_service, made.reachable) == (passes_checks, in_service, reachable)
    assert made.available(0.0) is in_service


def test_an_instance_is_full_at_its_capacity_and_still_available() -> None:
    made = backend(capacity=2)
    made.instance.load = 1.9
    assert not made.full
    made.instance.load = 2
    assert made.full and made.available(0.0)


def test_a_suspect_is_not_available_until_its_time_is_up_or_it_is_reported_healthy() -> None:
    made = backend()
    made.suspect_until = 5.0
    assert made.suspect(4.9) and not made.available(4.9)
    assert not made.suspect(5.0) and made.available(5.0)
    made.update(made.member, 2)
    assert made.available(4.9)


def test_an_open_breaker_makes_an_instance_unavailable_until_its_reset_timeout() -> None:
    made = backend()
    made.breaker = Breaker(1, 10.0)
    made.breaker.record(False, 0.0, made.breaker.generation)
    assert not made.available(9.9)
    assert made.available(10.0)


def test_a_full_instance_is_possibly_stale_when_others_fill_it_by_an_old_report() -> None:
    loads = LoadView()
    made = backend(capacity=2, loads=loads)
    loads.exchanged(made.instance, 2, 1.0)
    assert made.full and not made.possibly_stale(1.0 + STALE_S)
    assert made.possibly_stale(1.01 + STALE_S)


def test_an_instance_that_this_gateway_fills_itself_is_never_possibly_stale() -> None:
    loads = LoadView()
    made = backend(capacity=2, loads=loads)
    loads.sent(made.instance)
    loads.sent(made.instance)
    assert made.full and not made.possibly_stale(100.0)


def test_a_lease_reports_its_load_its_outcome_and_its_end_once_each() -> None:
    owner, made = Owner(), backend()
    lease = Lease(owner, made, 1.0, 0.5)
    assert made.tally.active == 1
    lease.answered(1.2, LoadReport(in_flight=3, on_arrival=2))
    lease.release(200, 1.5, ok=True)
    lease.release(502, 1.6, ok=False)
    assert owner.reports == [("load", 3), ("judged", True), ("released", 200)]
    assert (made.tally.active, lease.load_on_arrival) == (0, 2)


def test_a_lease_without_a_breaker_generation_gives_no_outcome() -> None:
    owner = Owner(generation=None)
    lease = Lease(owner, backend(), 1.0, 1.0)
    lease.release(500, 1.5, ok=False)
    assert owner.reports == [("released", 500)]


def test_an_overdue_lease_is_a_failure_and_a_later_answer_changes_nothing() -> None:
    owner, made = Owner(), backend()
    lease = Lease(owner, made, 1.0, 1.0)
    lease.mark_overdue(11.0)
    assert list(made.overdue) == [lease] and not made.awaiting
    lease.release(200, 12.0, ok=True)
    assert owner.reports == [("judged", False), ("released", 200)]
    assert not made.overdue


def test_an_instance_that_refuses_as_full_is_counted_one_above_its_own_report() -> None:
    owner = Owner()
    Lease(owner, backend(capacity=4), 1.0, 1.0).refused_full(1.1, LoadReport(in_flight=4, on_arrival=4))
    Lease(owner, backend(capacity=4), 1.0, 1.0).refused_full(1.1, None)
    assert owner.reports == [("load", 5), ("load", 5)]


def test_repr_states_the_situation() -> None:
    made = backend("healthy", capacity=100)
    assert repr(made) == "<Backend instance-1 healthy; 0 in flight from here, load 0 of 100>"
    made.breaker = Breaker(5, 60.0)
    made.suspect_until = 7.5
    lease = Lease(Owner(), made, 1.0, 1.0)
    made.instance.load = 2.5
    assert repr(made) == (
        "<Backend instance-1 healthy, breaker closed, suspect until 7.5; 1 in flight from here, load 2.5 of 100>"
    )
    assert repr(lease) == "<Lease on instance-1 since 1, waiting for the answer>"
    lease.mark_overdue(2.0)
    assert repr(lease) == "<Lease on instance-1 since 1, overdue>"
    lease.answered(3.0, None)
    assert repr(lease) == "<Lease on instance-1 since 1, receiving the answer>"
    lease.release(200, 4.0)
    assert repr(lease) == "<Lease on instance-1 since 1, released>"
