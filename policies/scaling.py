"""How many instances should a region have?

Each metric (CPU, requests in flight) proposes what would bring it to its target, nothing within 10 % of it; the largest
proposal wins. Proposals are made of the 6-s mean, so that a spike alone changes nothing. Up at once when it asks for
twice what runs, as far as the last 2 s ask for (the mean lags); else to the smallest proposal of 15 s. Down to the largest
proposal of the downscale delay, never more than half at a time (but one to none), 15 s apart. The bounds win over all of it.
Not for starting from nothing faster than a process starts: keep minInstances at what a burst needs.
Source: Kubernetes' horizontal pod autoscaler (formula, tolerance, missing numbers, windows); Knative's panic window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, fsum

TOLERANCE = 0.1
MEAN_S = 6.0
NEWEST_S = 2.0
GROW_AFTER_S = 15.0
SHRINK_EVERY_S = 15.0
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Metric:
    """`value` is the mean per instance; None: no numbers. With no instance: the waiting load."""

    value: float | None
    target: float


class History:
    """Recent load and proposals of one region. `reason`: why `desired` last changed the count."""

    __slots__ = ("_proposals", "_shrunk_at", "_totals", "downscale_delay_s", "reason")

    def __init__(self, downscale_delay_s: float = 300.0) -> None:
        self.downscale_delay_s = downscale_delay_s
        self.reason = ""
        self._totals: dict[str, deque[tuple[float, float]]] = {}  # by metric: when, and its sum over the instances
        self._proposals: deque[tuple[float, int]] = deque()
        self._shrunk_at: float | None = None

    def __repr__(self) -> str:
        return f"<History {len(self._proposals)} proposals, down after {self.downscale_delay_s:g} s>"

    def observe(self, name: str, total: float, now: float) -> None:
        """Sums, not means: they stay comparable when the number of instances changes."""
        totals = self._totals.setdefault(name, deque())
        totals.append((now, total))
        while totals[0][0] <= now - MEAN_S:
            totals.popleft()

    def mean(self, name: str, last_s: float, now: float) -> float:
        recent = [total for at, total in self._totals[name] if at > now - last_s]
        return fsum(recent) / len(recent)

    def propose(self, current: int, proposed: int, now: float) -> None:
        if not self._proposals:  # no history: take the current count as right
            self._proposals.append((now, current))
        self._proposals.append((now, proposed))
        keep_s = max(GROW_AFTER_S, self.downscale_delay_s)
        while self._proposals[0][0] <= now - keep_s and len(self._proposals) > 1:
            self._proposals.popleft()

    def smallest(self, last_s: float, now: float) -> int:
        return min(self._within(last_s, now))

    def largest(self, last_s: float, now: float) -> int:
        return max(self._within(last_s, now))

    def may_shrink(self, now: float) -> bool:
        return self._shrunk_at is None or now >= self._shrunk_at + SHRINK_EVERY_S

    def shrunk(self, now: float) -> None:
        self._shrunk_at = now

    def _within(self, last_s: float, now: float) -> list[int]:
        return [count for at, count in self._proposals if at > now - last_s] or [self._proposals[-1][1]]


def proposal(current: int, value: float, target: float, tolerance: float = TOLERANCE) -> int:
    """One metric's proposal: `value` is the mean over `current` instances. With none, `value` is the waiting load."""
    if current and abs(value / target - 1) <= tolerance + ROUNDING:
        return current
    return max(0, ceil(max(1, current) * value / target - ROUNDING))


def mean_of(values: Sequence[float | None], target: float) -> float | None:
    """The mean per instance. Instances without numbers count as on target when shrinking, as 0 when growing.

    Where that reverses the direction, the target itself: no change.
    """
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    mean = fsum(numbers) / len(numbers)
    missing = len(values) - len(numbers)
    if not missing:
        return mean
    filled = (fsum(numbers) + (missing * target if mean < target else 0.0)) / len(values)
    return filled if (filled < target) == (mean < target) else target


def desired(current: int, metrics: Mapping[str, Metric], minimum: int, maximum: int, history: History, now: float) -> int:
    """How many instances there should be, from `minimum` to `maximum`. Call it about once a second."""
    instances = max(1, current)
    known = {name: metric for name, metric in metrics.items() if metric.value is not None}
    for name, metric in known.items():
        history.observe(name, (metric.value or 0.0) * instances, now)
    proposals = {name: _proposal_of(current, name, metrics[name], MEAN_S, history, now) for name in known}
    if len(known) < len(metrics) or not proposals:
        proposals[""] = current  # without numbers: no reason to shrink, and none to grow
    proposed = max(proposals.values())
    at_once = proposed > current and proposed >= 2 * current
    if at_once:
        proposed = max(proposed, *(_proposal_of(current, name, metrics[name], NEWEST_S, history, now) for name in known))
    history.propose(current, proposed, now)
    count = current
    if at_once:
        count = proposed
    elif proposed > current:
        count = max(current, history.smallest(GROW_AFTER_S, now))
    elif history.may_shrink(now):
        least = current - current // 2 if current > 1 else 0
        count = min(current, max(least, history.largest(history.downscale_delay_s, now)))
    count = max(minimum, min(maximum, count))
    if count != current:
        history.reason = _reason(current, count, proposals, metrics, (minimum, maximum), history, now)
    if count < current:
        history.shrunk(now)
    return count


def _proposal_of(current: int, name: str, metric: Metric, last_s: float, history: History, now: float) -> int:
    return proposal(current, history.mean(name, last_s, now) / max(1, current), metric.target)


def _reason(
    current: int,
    count: int,
    proposals: Mapping[str, int],
    metrics: Mapping[str, Metric],
    bounds: tuple[int, int],
    history: History,
    now: float,
) -> str:
    if not bounds[0] <= current <= bounds[1]:
        return f"outside the bounds of {bounds[0]} to {bounds[1]}"
    decisive = max((name for name in proposals if name), key=lambda name: proposals[name])
    mean = history.mean(decisive, MEAN_S, now) / max(1, current)
    target = metrics[decisive].target
    if count > current:
        return f"{decisive} per instance: {mean:.4g}, target {target:g}"
    return (
        f"{decisive} per instance: {mean:.4g}, target {target:g}; the load was low enough for {history.downscale_delay_s:g} s"
    )
