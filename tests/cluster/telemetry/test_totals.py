"""Adding up: what a gateway, or another in its place, tells twice is counted once, and no counter goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import Key
from cluster.telemetry.totals import MOST_GATEWAYS, MetricTotals

KEY: Key = ("a", "v1", "us", "instance-1")


def seen(batch: int, count: int = 1, active: int = 0, gateway: str = "g") -> Observation:
    counts = InstanceCounts(active=active, codes={200: count})
    return Observation(gateway, {KEY: counts}, {("a", 503): count}, retries={"a": count}, queued={"a": active}, batch=batch)


def counts(totals: MetricTotals) -> tuple[int, int, int]:
    return totals.requests(KEY)[0], totals.refused("a"), totals.retries["a"]


def test_what_is_told_again_is_counted_once_and_its_states_are_the_newest() -> None:
    totals = MetricTotals()
    assert totals.add(seen(1, 5, active=2), 0.0)
    assert totals.add(seen(1, 5, active=3), 1.0)
    assert counts(totals) == (5, 5, 5)
    assert (totals.active(KEY), totals.queued("a")) == (3, 3)


def test_one_that_comes_late_says_nothing_any_more() -> None:
    totals = MetricTotals()
    totals.add(seen(1, 5), 0.0)
    totals.add(seen(2, 1, active=1), 1.0)
    assert not totals.add(seen(1, 5, active=9), 2.0)
    assert counts(totals) == (6, 6, 6)
    assert totals.active(KEY) == 1


def test_a_batch_of_a_removed_gateway_is_still_counted_once() -> None:
    totals = MetricTotals()
    totals.add(seen(1, 5, active=4), 0.0)
    totals.forget_gateway("g")
    totals.add(seen(1, 5), 1.0)
    assert counts(totals) == (5, 5, 5)
    assert totals.add(seen(2, 2), 1.0)
    assert counts(totals) == (7, 7, 7)


def test_a_new_controller_takes_up_at_any_number() -> None:
    totals = MetricTotals()
    totals.add(seen(41, 3), 0.0)
    totals.add(seen(42, 1), 1.0)
    assert counts(totals) == (4, 4, 4)


def test_it_does_not_remember_gateways_without_end() -> None:
    totals = MetricTotals()
    totals.add(seen(1, gateway="steady"), 0.0)
    for number in range(3 * MOST_GATEWAYS):
        totals.add(seen(1, gateway=f"g{number}"), 0.0)
        totals.forget_gateway(f"g{number}")
        totals.add(seen(2 + number, gateway="steady"), 0.0)
    told = totals.requests(KEY)[0]
    totals.add(seen(1 + 3 * MOST_GATEWAYS, gateway="steady"), 1.0)
    assert totals.requests(KEY)[0] == told, "the one that goes on telling is never forgotten"
    assert len(totals._batches) == MOST_GATEWAYS


@given(st.lists(st.tuples(st.sampled_from("gh"), st.integers(1, 6)), max_size=60))
def test_in_any_order_and_however_often_no_counter_goes_back_and_each_batch_counts_at_most_once(
    arrivals: list[tuple[str, int]],
) -> None:
    totals, before = MetricTotals(), (0, 0, 0)
    for gateway, batch in arrivals:
        totals.add(seen(batch, count=10**batch, gateway=gateway), 0.0)
        after = counts(totals)
        assert all(b >= a for a, b in zip(before, after, strict=True))
        before = after
    assert before[0] <= sum(10**batch for _, batch in set(arrivals))


def test_it_states_what_it_has_added_up() -> None:
    totals = MetricTotals()
    totals.add(seen(1, 5, active=2), 0.0)
    assert repr(totals) == "<MetricTotals: 5 requests to 1 instances, 1 gateways>"
