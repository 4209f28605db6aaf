"""Statistics of the runs: percentiles, and each figure over the rounds. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

SUMMED = frozenset(("errors", "failed", "ran_twice", "lost_chunks", "disordered"))  # over the rounds
HIGHEST = frozenset(("slowest_ms", "gap_ms"))  # of all rounds; every other figure: the median of the rounds


@dataclass(frozen=True)
class Run:
    """What one measure showed of one contender in one round. Figures carry their units in their names."""

    contender: str
    measure: str
    round: int
    figures: Mapping[str, float]

    def __str__(self) -> str:
        shown = "  ".join(f"{name} {value:,.4g}" for name, value in self.figures.items())
        return f"{self.contender:<14}{self.measure:<13}{shown}"


@dataclass(frozen=True)
class Row:
    """One contender in one measure, over the rounds. `lowest` and `highest`: the same figures' range."""

    contender: str
    measure: str
    rounds: int
    figures: Mapping[str, float]
    lowest: Mapping[str, float]
    highest: Mapping[str, float]


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed (nearest rank); 0 of no values."""
    if not ascending:
        return 0.0
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def per_thousand(cpu_s: float, count: float) -> float:
    """CPU seconds per 1,000 requests or streams; 0 if there were none."""
    return 1000 * cpu_s / count if count else 0.0


def summarize(runs: Sequence[Run]) -> list[Row]:
    """A row per contender and measure, in the order in which they first ran."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.contender, run.measure), []).append(run)
    rows = []
    for (contender, measure), group in groups.items():
        values = {name: [run.figures[name] for run in group if name in run.figures] for name in group[0].figures}
        rows.append(
            Row(
                contender,
                measure,
                len(group),
                {name: _over_rounds(name, found) for name, found in values.items()},
                {name: min(found) for name, found in values.items()},
                {name: max(found) for name, found in values.items()},
            )
        )
    return rows


def _over_rounds(name: str, values: Sequence[float]) -> float:
    if name in SUMMED:
        return sum(values)
    return max(values) if name in HIGHEST else median(values)
