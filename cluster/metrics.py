"""Counting: a `Tally` in every gateway for each instance, and what its numbers mean.

Cheap to add to, since every request does. The Controller adds up what all gateways saw (cluster/ledger.py). Percentiles come
from the buckets, by linear interpolation within one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cluster.messages import InstanceCounts

# Upper bounds in seconds; one more bucket takes what is slower.
BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
ROUTING_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0, 10.0, 60.0)

Key = tuple[str, str, str, str]  # agent, version, region, instance
LABELS = ("agent", "version", "region", "instance")


class Tally:
    """What one gateway saw of one instance. Cheap to add to; `take()` hands over and starts anew."""

    __slots__ = ("active", "codes", "durations", "first_bytes", "routings", "sums")

    def __init__(self) -> None:
        self.active = 0
        self._reset()

    def _reset(self) -> None:
        self.codes: dict[int, int] = {}
        self.durations = [0] * (len(BUCKETS_S) + 1)
        self.first_bytes = [0] * (len(BUCKETS_S) + 1)
        self.routings = [0] * (len(ROUTING_BUCKETS_S) + 1)
        self.sums = [0.0, 0.0, 0.0]

    def routed(self, seconds: float) -> None:
        """How long it took from the request's admission to the choice of this instance, waiting in line included."""
        self.routings[bisect_left(ROUTING_BUCKETS_S, seconds)] += 1
        self.sums[2] += seconds

    def add(self, code: int, duration_s: float, first_byte_s: float | None) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1
        self.durations[bisect_left(BUCKETS_S, duration_s)] += 1
        self.sums[0] += duration_s
        if first_byte_s is not None:
            self.first_bytes[bisect_left(BUCKETS_S, first_byte_s)] += 1
            self.sums[1] += first_byte_s

    def take(self) -> InstanceCounts:
        if not self.codes and not any(self.routings):
            return InstanceCounts(active=self.active)
        counts = InstanceCounts(
            active=self.active,
            codes=self.codes,
            durations=tuple(self.durations),
            duration_sum_s=self.sums[0],
            first_bytes=tuple(self.first_bytes),
            first_byte_sum_s=self.sums[1],
            routings=tuple(self.routings),
            routing_sum_s=self.sums[2],
        )
        self._reset()
        return counts


def merge(one: InstanceCounts, other: InstanceCounts) -> InstanceCounts:
    """Both together, for an observation that could not be delivered; `active` is the later one's."""
    codes = dict(one.codes)
    for code, count in other.codes.items():
        codes[code] = codes.get(code, 0) + count
    return InstanceCounts(
        active=other.active,
        codes=codes,
        durations=added(one.durations, other.durations),
        duration_sum_s=one.duration_sum_s + other.duration_sum_s,
        first_bytes=added(one.first_bytes, other.first_bytes),
        first_byte_sum_s=one.first_byte_sum_s + other.first_byte_sum_s,
        routings=added(one.routings, other.routings),
        routing_sum_s=one.routing_sum_s + other.routing_sum_s,
    )


def added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Bucket by bucket; an empty one is all zeros."""
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def percentile_s(counts: Sequence[int], share: float) -> float | None:
    """The value below which `share` (0..1) of the counted lie; None without any."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            low = BUCKETS_S[index - 1] if index else 0.0
            high = BUCKETS_S[min(index, len(BUCKETS_S) - 1)]
            return low + (high - low) * (wanted - below) / count
        below += count
    return BUCKETS_S[-1]


def is_error(code: int) -> bool:
    return code >= 500


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
