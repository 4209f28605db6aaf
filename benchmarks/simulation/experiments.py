"""Runs a plan: every case with every seed, all contenders of a scenario on the same trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool

from simulation.engine import central_queue, run
from simulation.scenarios import Case, Scenario
from simulation.stats import Interval, Metrics, interval, measure
from simulation.workload import draw

Key = tuple[str, str, int]  # Case.key
Results = dict[Key, list[Metrics]]  # one entry per seed, in the order of the seeds


@dataclass(frozen=True, slots=True)
class Batch:
    """All cases of one scenario with one seed."""

    scenario: Scenario
    cases: tuple[Case, ...]
    seed: int
    requests: int


def run_batch(batch: Batch) -> list[tuple[Key, Metrics]]:
    scenario = batch.scenario.sized(batch.requests)
    trace = draw(
        batch.seed,
        count=batch.requests,
        rate=scenario.rate,
        arrivals=scenario.arrivals,
        service=scenario.service,
        service_s=scenario.service_s,
    )
    reference = central_queue(trace, scenario.fleet)
    counted = None if scenario.counted_s is None else round(scenario.counted_s * scenario.rate)
    measured = []
    for case in batch.cases:
        contender = case.contender
        outcome = run(trace, scenario.fleet, contender.build, contender.knowledge, gateways=case.gateways, seed=batch.seed)
        measured.append((case.key, measure(outcome, reference, scenario.fleet.bad, counted)))
    return measured


def run_plan(
    cases: Sequence[Case],
    *,
    seeds: int,
    requests: int,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Results:
    batches = [
        Batch(scenario, tuple(case for case in cases if case.scenario == scenario), seed, requests)
        for scenario in dict.fromkeys(case.scenario for case in cases)
        for seed in range(seeds)
    ]
    results: Results = {case.key: [] for case in cases}
    for number, (batch, measured) in enumerate(zip(batches, _each(batches, jobs), strict=True), 1):
        for key, metrics in measured:
            results[key].append(metrics)
        progress(f"{number}/{len(batches)}  {batch.scenario.name}, seed {batch.seed}")
    return results


def _each(batches: Sequence[Batch], jobs: int) -> Iterator[list[tuple[Key, Metrics]]]:
    if jobs == 1:
        yield from map(run_batch, batches)
        return
    with Pool(jobs) as pool:
        yield from pool.imap(run_batch, batches)


def summary(results: Results, key: Key, metric: str) -> Interval:
    return interval([getattr(metrics, metric) for metrics in results[key]])


def paired(results: Results, key: Key, other: Key, metric: str = "mean") -> Interval:
    """`key` relative to `other`, seed by seed: both had the same trace, so its randomness cancels."""
    pairs = zip(results[key], results[other], strict=True)
    return interval([getattr(mine, metric) / getattr(theirs, metric) for mine, theirs in pairs])
