"""Counting requests: each gateway has a `Tally` per instance; here are its layout and the meaning of its numbers.

Cheap to update, because every request does. The Controller adds up the tallies of all gateways (cluster/telemetry/totals.py).
Percentiles are computed from the buckets, by linear interpolation within a bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cluster.messages import InstanceCounts

# Upper bounds in seconds; one more bucket holds slower requests.
BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
ROUTING_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0, 10.0, 60.0)

Key = tuple[str, str, str, str]  # agent, version, region, instance
LABELS = ("agent", "version", "region", "instance")


CODES = 48  # how many status codes a tally distinguishes; the last cell counts all others, as 0
_DURATIONS = CODES
_FIRST_BYTES = _DURATIONS + len(BUCKETS_S) + 1
_ROUTINGS = _FIRST_BYTES + len(BUCKETS_S) + 1
_SUMS_NS = _ROUTINGS + len(ROUTING_BUCKETS_S) + 1  # of durations, first bytes, routings
CELLS = _SUMS_NS + 3


def words(count: int) -> memoryview[int]:
    """An array of `count` integers, all zero."""
    return memoryview(bytearray(8 * count)).cast("q")


_ZEROS = words(CELLS)


class Tally:
    """The requests of one gateway to one instance. `take()` returns the counts and resets them.

    The counts are flat memory, so that a gateway can keep them in a file that outlives it (deployments/gateway/counts_file.py).
    Two arrays are filled in turn: the one taken last stays readable until the next `take()`.
    """

    __slots__ = ("_cells", "_codes", "_other", "_places", "active")

    def __init__(self) -> None:
        self.active = 0
        self.move(words(CODES), words(CELLS), words(CELLS))

    def move(self, codes: memoryview[int], filling: memoryview[int], other: memoryview[int]) -> None:
        """Count in these arrays from now on. They are all zero, and nothing has been counted yet."""
        self._codes, self._cells, self._other = codes, filling, other
        self._places: dict[int, int] = {}

    def routed(self, seconds: float) -> None:
        """Record the time from admission to the choice of this instance, including time in the wait queue."""
        cells = self._cells
        cells[_ROUTINGS + bisect_left(ROUTING_BUCKETS_S, seconds)] += 1
        cells[_SUMS_NS + 2] += int(seconds * 1e9)

    def add(self, code: int, duration_s: float, first_byte_s: float | None) -> None:
        self.count(code)
        cells = self._cells
        cells[_DURATIONS + bisect_left(BUCKETS_S, duration_s)] += 1
        cells[_SUMS_NS] += int(duration_s * 1e9)
        if first_byte_s is not None:
            cells[_FIRST_BYTES + bisect_left(BUCKETS_S, first_byte_s)] += 1
            cells[_SUMS_NS + 1] += int(first_byte_s * 1e9)

    def count(self, code: int) -> None:
        """Count a request without its duration."""
        place = self._places.get(code)
        self._cells[self._place(code) if place is None else place] += 1

    def _place(self, code: int) -> int:
        place = len(self._places)
        if place >= CODES - 1:
            return CODES - 1
        self._codes[place] = code
        self._places[code] = place
        return place

    @property
    def codes(self) -> dict[int, int]:
        """Counts by status code since the last `take()`."""
        return counts_of(self._codes, self._cells).codes

    def take(self) -> InstanceCounts:
        taken = self._cells
        self._other[:] = _ZEROS
        self._cells, self._other = self._other, taken
        return counts_of(self._codes, taken, self.active)


def counts_of(codes: Sequence[int], cells: memoryview[int], active: int = 0) -> InstanceCounts:
    """The counts in a tally's cells. `codes[i]` is the status code that cell i counts."""
    numbers = cells.tolist()
    if not any(numbers):
        return InstanceCounts(active=active)
    return InstanceCounts(
        active=active,
        codes={code: count for code, count in zip(codes, numbers[:CODES], strict=True) if count},
        durations=tuple(numbers[_DURATIONS:_FIRST_BYTES]),
        duration_sum_s=numbers[_SUMS_NS] / 1e9,
        first_bytes=tuple(numbers[_FIRST_BYTES:_ROUTINGS]),
        first_byte_sum_s=numbers[_SUMS_NS + 1] / 1e9,
        routings=tuple(numbers[_ROUTINGS:_SUMS_NS]),
        routing_sum_s=numbers[_SUMS_NS + 2] / 1e9,
    )


def merge(one: InstanceCounts, other: InstanceCounts) -> InstanceCounts:
    """The sum of both, such as of an old process and its replacement; `active` is that of `other`."""
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
    """The sum bucket by bucket; an empty tuple is all zeros."""
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def percentile_s(counts: Sequence[int], share: float) -> float | None:
    """The value below which a `share` (0..1) of the counted requests lies; None without any."""
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
