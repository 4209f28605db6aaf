"""Statistics: figures of a run, and the mean over several seeds with its 95 % confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

from simulation.engine import Outcome

WARM_UP = 0.1  # of the requests, not counted
# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal's is close enough.
T_95 = (inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
T_95_MANY = 2.0


@dataclass(frozen=True, slots=True)
class Interval:
    mean: float
    half: float  # of the width of the 95 % confidence interval; 0 with a single seed

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of one run. Times in mean service times, of the requests that succeeded; `*_ratio` = over the central queue's."""

    mean: float
    p50: float
    p99: float
    mean_ratio: float
    p50_ratio: float
    p99_ratio: float
    success: float
    bad_share: float  # of the requests that went to the bad instance


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else inf


def measure(outcome: Outcome, reference: Outcome, bad: int | None, count: int | None = None) -> Metrics:
    """Of `count` requests after the warm-up; None: of all."""
    first = int(WARM_UP * len(outcome.ok))
    counted = range(first, len(outcome.ok) if count is None else min(first + count, len(outcome.ok)))
    mine = sorted(outcome.elapsed[request] for request in counted if outcome.ok[request])
    best = sorted(reference.elapsed[request] for request in counted)
    mean, central_mean = sum(mine) / len(mine), sum(best) / len(best)
    p50, p99 = percentile(mine, 0.5), percentile(mine, 0.99)
    return Metrics(
        mean=mean,
        p50=p50,
        p99=p99,
        mean_ratio=mean / central_mean,
        p50_ratio=p50 / percentile(best, 0.5),
        p99_ratio=p99 / percentile(best, 0.99),
        success=len(mine) / len(counted),
        bad_share=sum(outcome.chosen[request] == bad for request in counted) / len(counted),
    )


def interval(values: Sequence[float]) -> Interval:
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, 0.0)
    spread = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    t = T_95[count - 1] if count <= len(T_95) else T_95_MANY
    return Interval(mean, t * spread / sqrt(count))
