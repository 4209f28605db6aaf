"""How is traffic divided between levels of priority as their health falls?

Integer percentages: a level can carry min(100, 140 * healthy // total); levels are filled in order until 100 is
reached, and when all together carry less than 100 each gets its part of that. So a level keeps all its traffic until
71 % of it is healthy, and the next one takes over gradually. Below 50 % healthy while the levels together carry less
than 100, a level panics: health checks no longer guide it, and it spreads over all instances that answer at all. When every
level panics, traffic is divided by size. Instances that were never checked are left out of the denominator.
Not a draw: policies/spillover.py does that. Source: Envoy, priority levels, degraded hosts and panic threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """Counts of instances. `excluded` are in `total` and have never been checked."""

    total: int
    healthy: int
    degraded: int = 0
    excluded: int = 0

    @property
    def counted(self) -> int:
        return self.total - self.excluded


@dataclass(frozen=True, slots=True)
class LevelLoads:
    """Percent of the traffic per level, for its healthy and its degraded instances; together 100."""

    healthy: list[int]
    degraded: list[int]
    panic: list[bool]


def level_loads(levels: Sequence[Level], overprovision: int = 140, panic: int = 50) -> LevelLoads:
    """Levels in order of priority. No levels or no instances: all loads 0."""
    healthy = [_available(level.healthy, level.counted, overprovision) for level in levels]
    degraded = [_available(level.degraded, level.counted, overprovision) for level in levels]
    norm = min(100, sum(healthy) + sum(degraded))
    panics = [norm < 100 and _share(level) < panic for level in levels]
    nothing = [0] * len(levels)
    if all(panics) or norm == 0:
        return LevelLoads(_by_size(levels), nothing, panics)
    healthy_loads, remaining = _fill(healthy, norm, 100)
    degraded_loads, remaining = _fill(degraded, norm, remaining)
    if remaining:  # the remainder of rounding goes to the first level that can take it
        loads, available = (healthy_loads, healthy) if any(healthy) else (degraded_loads, degraded)
        loads[_first(available)] += remaining
    return LevelLoads(healthy_loads, degraded_loads, panics)


def _available(count: int, counted: int, overprovision: int) -> int:
    return min(100, overprovision * count // counted) if counted > 0 else 0


def _share(level: Level) -> int:
    """Percent of a level that is healthy or degraded."""
    if level.counted <= 0:
        return 0
    return 100 * level.healthy // level.counted + 100 * level.degraded // level.counted


def _fill(available: Sequence[int], norm: int, remaining: int) -> tuple[list[int], int]:
    loads = []
    for percent in available:
        load = min(remaining, percent * 100 // norm)
        loads.append(load)
        remaining -= load
    return loads, remaining


def _by_size(levels: Sequence[Level]) -> list[int]:
    total = sum(level.total for level in levels)
    if total == 0:
        return [0] * len(levels)
    loads = [100 * level.total // total for level in levels]
    loads[_first([level.total for level in levels])] += 100 - sum(loads)
    return loads


def _first(values: Sequence[int]) -> int:
    return next(index for index, value in enumerate(values) if value)
