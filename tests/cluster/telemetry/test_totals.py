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


def counts(ledger: MetricTotals) -> tuple[int, int, int]:
    return ledger.requests(KEY)[0], ledger.refused("a"), ledger.retries["a"]


def test_what_is_told_again_is_counted_once_and_its_states_are_the_newest() -> None:
    ledger = MetricTotals()
    assert ledger.add(seen(1, 5, active=2), 0.0)
    assert ledger.add(seen(1, 5, active=3), 1.0)
    assert counts(ledger) == (5, 5, 5)
    assert (ledger.active(KEY), ledger.queued("a")) == (3, 3)


def test_one_that_comes_late_says_nothing_any_more() -> None:
    ledger = MetricTotals()
    ledger.add(seen(1, 5), 0.0)
    ledger.add(seen(2, 1, active=1), 1.0)
    assert not ledger.add(seen(1, 5, active=9), 2.0)
    assert counts(ledger) == (6, 6, 6)
    assert ledger.active(KEY) == 1


def test_a_gateway_that_is_gone_is_still_known_to_have_told() -> None:
    ledger = MetricTotals()
    ledger.add(seen(1, 5, active=4), 0.0)
    ledger.forget_gateway("g")
    ledger.add(seen(1, 5), 1.0)
    assert counts(ledger) == (5, 5, 5)
    assert ledger.add(seen(2, 2), 1.0)
    assert counts(ledger) == (7, 7, 7)


def test_a_new_controller_takes_up_at_any_number() -> None:
    ledger = MetricTotals()
    ledger.add(seen(41, 3), 0.0)
    ledger.add(seen(42, 1), 1.0)
    assert counts(ledger) == (4, 4, 4)


def test_it_does_not_remember_gateways_without_end() -> None:
    ledger = MetricTotals()
    ledger.add(seen(1, gateway="steady"), 0.0)
    for number in range(3 * MOST_GATEWAYS):
        ledger.add(seen(1, gateway=f"g{number}"), 0.0)
        ledger.forget_gateway(f"g{number}")
        ledger.add(seen(2 + number, gateway="steady"), 0.0)
    told = ledger.requests(KEY)[0]
    ledger.add(seen(1 + 3 * MOST_GATEWAYS, gateway="steady"), 1.0)
    assert ledger.requests(KEY)[0] == told, "the one that goes on telling is never forgotten"
    assert len(ledger._batches) == MOST_GATEWAYS


@given(st.lists(st.tuples(st.sampled_from("gh"), st.integers(1, 6)), max_size=60))
def test_in_any_order_and_however_often_no_counter_goes_back_and_each_batch_counts_at_most_once(
    arrivals: list[tuple[str, int]],
) -> None:
    ledger, before = MetricTotals(), (0, 0, 0)
    for gateway, batch in arrivals:
        ledger.add(seen(batch, count=10**batch, gateway=gateway), 0.0)
        after = counts(ledger)
        assert all(b >= a for a, b in zip(before, after, strict=True))
        before = after
    assert before[0] <= sum(10**batch for _, batch in set(arrivals))
