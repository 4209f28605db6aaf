"""Statistics of the runs: medians over the rounds, and ratios between contenders. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Run:
    """One measurement of one contender. Percentiles are of the requests of this run."""

    contender: str
    connections: int
    round: int
    seconds: float
    requests: int
    p50_ms: float
    p99_ms: float
    refused: int  # answers with a status of 400 or more
    broken: int  # connections that failed, broke off or timed out

    def __str__(self) -> str:
        what = f"{self.contender:<14}{self.connections:>3} connections {self.per_second:8,.0f} req/s"
        return f"{what}  p50 {self.p50_ms:7.2f} ms  p99 {self.p99_ms:7.2f} ms  {self.errors} errors"

    @property
    def errors(self) -> int:
        return self.refused + self.broken

    @property
    def per_second(self) -> float:
        """Successful responses only."""
        return max(0, self.requests - self.refused) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Row:
    """One contender at one number of connections: medians over the rounds, errors summed."""

    contender: str
    connections: int
    rounds: int
    per_second: float
    lowest: float
    highest: float
    p50_ms: float
    p99_ms: float
    errors: int
    ratios: dict[str, float]  # other contender -> its requests per second go into ours this often


def summarize(runs: Sequence[Run], references: Sequence[str]) -> list[Row]:
    """Rows by connections, then in the order in which the contenders first ran."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.connections, run.contender), []).append(run)
    speeds = {key: median(run.per_second for run in group) for key, group in groups.items()}
    order = list(dict.fromkeys(run.contender for run in runs))
    rows = []
    for key in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        connections, contender = key
        group = groups[key]
        against = {name: speeds.get((connections, name), 0.0) for name in references}
        rows.append(
            Row(
                contender,
                connections,
                rounds=len(group),
                per_second=speeds[key],
                lowest=min(run.per_second for run in group),
                highest=max(run.per_second for run in group),
                p50_ms=median(run.p50_ms for run in group),
                p99_ms=median(run.p99_ms for run in group),
                errors=sum(run.errors for run in group),
                ratios={name: speeds[key] / speed for name, speed in against.items() if speed > 0},
            )
        )
    return rows
