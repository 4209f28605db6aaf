"""The simulation's engine agrees with queueing theory, repeats itself, and loses no request."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
import simulate
from simulation import peers, workload
from simulation.engine import Fleet, central_queue, run
from simulation.gateway import OWN, REPORTS, TRUTH, Build, Knowledge, exchange
from simulation.scenarios import plan
from simulation.stats import Interval, interval, measure

pytestmark = pytest.mark.no_cover  # the simulation runs policies a million times; their own tests cover them

LOAD = 0.8
SEEDS = range(5)
REQUESTS = 6_000


def mean_times(
    fleet: Fleet, build: Build | None = None, knowledge: Knowledge = OWN, *, load: float = LOAD, service: str = "exponential"
) -> Interval:
    """Mean time in the system over the seeds; without a rule the central queue's."""
    means = []
    for seed in SEEDS:
        trace = workload.draw(seed, count=REQUESTS, rate=load * fleet.capacity, service=service)
        reference = central_queue(trace, fleet)
        outcome = reference if build is None else run(trace, fleet, build, knowledge, seed=seed)
        means.append(measure(outcome, reference, None).mean)
    return interval(means)


def agrees(measured: Interval, expected: float) -> bool:
    """Within the confidence interval, doubled: fixed seeds, and a queue's mean is skewed in short runs."""
    return bool(abs(measured.mean - expected) < 2 * measured.half and measured.half < 0.15 * expected)


def test_erlang_c_of_one_server_is_the_textbooks_rho_over_one_minus_rho() -> None:
    assert workload.erlang_c_wait(1, LOAD) == pytest.approx(LOAD / (1 - LOAD))


def test_erlang_c_of_two_servers_is_the_textbooks_rho_squared_over_one_minus_rho_squared() -> None:
    assert workload.erlang_c_wait(2, LOAD) == pytest.approx(LOAD**2 / (1 - LOAD**2))


@pytest.mark.parametrize("servers", [1, 2, 8])
def test_the_central_queue_waits_as_long_as_erlang_c_says(servers: int) -> None:
    measured = mean_times(Fleet(speeds=(1.0,) * servers))

    assert agrees(measured, 1 + workload.erlang_c_wait(servers, LOAD))


def test_one_instance_with_eight_slots_is_the_central_queue_of_eight() -> None:
    fleet = Fleet(speeds=(1.0,), slots=8)
    trace = workload.draw(1, count=REQUESTS, rate=LOAD * 8)

    assert run(trace, fleet, peers.random_choice, OWN).elapsed == pytest.approx(central_queue(trace, fleet).elapsed)


def test_a_random_split_is_so_many_single_queues() -> None:
    measured = mean_times(Fleet(speeds=(1.0,) * 4), peers.random_choice, load=0.6)

    assert agrees(measured, 1 + workload.erlang_c_wait(1, 0.6))


@pytest.mark.parametrize("service", ["exponential", "agent-mix"])
def test_processor_sharing_takes_one_over_one_minus_rho_whatever_the_service_times(service: str) -> None:
    measured = mean_times(Fleet(speeds=(1.0,), sharing=True), peers.random_choice, load=0.5, service=service)

    assert agrees(measured, 1 / (1 - 0.5))


def test_the_shortest_true_queue_lies_between_the_central_queue_and_a_random_split() -> None:
    fleet = Fleet()
    central, shortest, split = (
        mean_times(fleet),
        mean_times(fleet, peers.shortest_queue, TRUTH),
        mean_times(fleet, peers.random_choice),
    )

    assert central.high < shortest.low
    assert shortest.high < split.low / 2


def test_knowing_more_recently_is_never_worse() -> None:
    known = [TRUTH, exchange(0.1), exchange(1.0), exchange(10.0)]
    means = [mean_times(Fleet(), peers.shortest_queue, knowledge).mean for knowledge in known]

    assert means == sorted(means)


def test_a_single_gateway_knows_the_truth_by_its_own_counts() -> None:
    trace = workload.draw(2, count=2_000, rate=LOAD * 8)
    outcomes = [
        run(trace, Fleet(), peers.shortest_queue, knowledge, gateways=1, seed=2)
        for knowledge in (TRUTH, OWN, REPORTS, exchange(0.1), Knowledge(reports=True, exchange_s=0.1))
    ]

    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("knowledge", [OWN, REPORTS, exchange(0.1), TRUTH])
def test_the_same_seed_gives_the_same_run(knowledge: Knowledge) -> None:
    def once(seed: int) -> list[float]:
        trace = workload.draw(seed, count=500, rate=LOAD * 8, arrivals="bursty", service="log-normal")
        return list(run(trace, Fleet(), peers.prequal, knowledge, seed=seed).elapsed)

    assert once(3) == once(3)
    assert once(3) != once(4)


@pytest.mark.parametrize(
    "fleet",
    [Fleet(), Fleet(slots=5), Fleet(sharing=True), Fleet(speeds=(0.5, 0.5, 1.0, 2.0)), Fleet(bad=1, fails_fast=True)],
    ids=["queueing", "slots", "sharing", "speeds", "failing"],
)
def test_every_request_is_answered_once_and_takes_at_least_its_work(fleet: Fleet) -> None:
    trace = workload.draw(5, count=2_000, rate=LOAD * fleet.capacity, service="agent-mix")

    outcome = run(trace, fleet, peers.power_of_two, REPORTS)

    assert all(index >= 0 for index in outcome.chosen)
    for elapsed, ok, work, index in zip(outcome.elapsed, outcome.ok, trace.work, outcome.chosen, strict=True):
        assert ok == (not fleet.fails_fast or index != fleet.bad)
        assert not ok or elapsed >= work / fleet.speeds[index] - 1e-9


def test_one_server_never_works_at_more_than_its_speed() -> None:
    fleet = Fleet(speeds=(1.0, 1.0), sharing=True)
    trace = workload.draw(6, count=2_000, rate=LOAD * fleet.capacity)

    outcome = run(trace, fleet, peers.random_choice, OWN)

    ends = [arrival + elapsed for arrival, elapsed in zip(trace.arrivals, outcome.elapsed, strict=True)]
    for server in (0, 1):
        mine = [request for request, index in enumerate(outcome.chosen) if index == server]
        assert sum(trace.work[request] for request in mine) <= max(ends[request] for request in mine)


def test_a_frozen_instance_fails_what_it_holds_and_leaves_rotation_when_it_is_found_out() -> None:
    fleet = Fleet(bad=0, freezes_at=20.0, leaves_after=30.0)
    trace = workload.draw(7, count=1_000, rate=0.5 * fleet.capacity)

    outcome = run(trace, fleet, peers.random_choice, OWN)

    rows = list(zip(trace.arrivals, outcome.ok, outcome.chosen, outcome.elapsed, strict=True))
    assert {ok for at, ok, index, _ in rows if index == 0 and at > 20.0} == {False}
    assert {index == 0 for at, _, index, _ in rows if at > 50.0} == {False}
    assert all(elapsed == pytest.approx(60.0) for _, ok, _, elapsed in rows if not ok)
    assert all(ok for _, ok, index, _ in rows if index != 0)


def test_a_breaker_that_opens_keeps_requests_away_and_the_other_gateways_know_within_a_second() -> None:
    fleet = Fleet(bad=0, fails_fast=True, breaker=(5, 60.0))
    trace = workload.draw(8, count=400, rate=0.5 * fleet.capacity)

    outcome = run(trace, fleet, peers.random_choice, OWN)

    failed_at = [at for at, ok in zip(trace.arrivals, outcome.ok, strict=True) if not ok]
    assert min(trace.arrivals[-1], 60.0) == 60.0
    assert 5 <= sum(at < 55.0 for at in failed_at) <= 5 * 4
    first_trip = max(at for at in failed_at if at < 55.0)
    assert not [at for at in failed_at if first_trip + 1.0 < at < 55.0]
    assert all(index >= 0 for index in outcome.chosen)


def test_where_nobody_may_take_a_request_it_is_refused() -> None:
    fleet = Fleet(speeds=(1.0,), bad=0, freezes_at=5.0, leaves_after=10.0)
    trace = workload.draw(9, count=100, rate=0.5)

    outcome = run(trace, fleet, peers.random_choice, OWN)

    assert {index for at, index in zip(trace.arrivals, outcome.chosen, strict=True) if at > 15.0} == {-1}


def test_reports_that_fade_to_the_fleets_mean_beat_reports_believed_for_ever() -> None:
    fading, forever = (
        mean_times(Fleet(), peers.shortest_queue, knowledge) for knowledge in (REPORTS, Knowledge(reports=True, fade=inf))
    )

    assert fading.mean < 0.95 * forever.mean


def test_the_quick_comparison_writes_tables_and_drawings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")  # the extra "bench"

    assert simulate.main(["--quick", "--requests", "100", "--output", str(tmp_path)]) == 0

    rows = json.loads((tmp_path / "simulation.json").read_text())["results"]
    assert len(rows) == len(plan())
    assert all(len(row["mean_ratio"]) == 2 for row in rows)
    assert "| least-connections [reports + exchange 0.1] |" in (tmp_path / "simulation.md").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".svg"}
    assert "power of two" in capsys.readouterr().out
