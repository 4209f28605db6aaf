"""What every instance did: the last 15 minutes by the second, 3 hours by ten, a day by the minute, without a server for it.

Each series is a few ring buffers of plain numbers, about 110 kB, so that 200 instances stay far below 50 MB and a day's
history is read by slicing. It lives in the Controller's memory only. Percentiles are taken from the buckets when a slot is
written: they are exact for the slot, and cannot be added up.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan, nan
from typing import Any

from cluster.telemetry.tally import BUCKETS_S, Key, percentile_s

RINGS = ((1, 900), (10, 1_080), (60, 1_440))  # (seconds per slot, slots)
COLUMNS = ("requests", "errors", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "connections", "cpu")
WHOLE = ("requests", "errors", "connections")
SERIES = 200  # more are kept only while their instances run


@dataclass(frozen=True)
class InstanceSample:
    """One instance now. Counts are since the Controller started; `connections` and `cpu` are of this moment."""

    key: Key
    requests: int
    errors: int
    duration_sum_s: float
    durations: Sequence[int]
    connections: int
    cpu: float | None = None


class _Ring:
    """The newest `slots` slots of `step` seconds each."""

    def __init__(self, step: int, slots: int) -> None:
        self.step, self.slots = step, slots
        self.columns: list[Any] = [array("I" if name in WHOLE else "f", [0]) * slots for name in COLUMNS]
        self.first = self.newest = -1  # slot numbers: seconds // step
        self._open()

    def _open(self) -> None:
        self._requests = self._errors = self._samples = self._connections = 0
        self._sum_s = self._cpu = 0.0
        self._durations = [0] * (len(BUCKETS_S) + 1)

    def add(self, now: int, requests: int, errors: int, sum_s: float, durations: Sequence[int], sample: InstanceSample) -> None:
        number = now // self.step
        if number != self.newest:
            self._move(number)
        self._requests += requests
        self._errors += errors
        self._sum_s += sum_s
        self._samples += 1
        self._connections = max(self._connections, sample.connections)
        self._cpu += nan if sample.cpu is None else sample.cpu
        if requests:
            self._durations = [a + b for a, b in zip(self._durations, durations, strict=True)]
        self._write(number % self.slots, bool(requests) or self._samples == 1)

    def _move(self, number: int) -> None:
        """To a later slot; those between stay empty."""
        if self.newest < 0 or number - self.newest >= self.slots:
            self.first = number
        else:
            for skipped in range(self.newest + 1, number):
                self._open()
                self._write(skipped % self.slots, True)
        self.newest = number
        self._open()

    def _write(self, slot: int, times: bool) -> None:
        columns = self.columns
        columns[0][slot], columns[1][slot] = self._requests, self._errors
        columns[6][slot] = self._connections
        columns[7][slot] = self._cpu / self._samples if self._samples else nan
        if times:
            columns[2][slot] = 1000 * self._sum_s / self._requests if self._requests else nan
            for column, share in ((3, 0.5), (4, 0.95), (5, 0.99)):
                value = percentile_s(self._durations, share) if self._requests else None
                columns[column][slot] = nan if value is None else 1000 * value

    def read(self, column: int, first: int, last: int) -> list[Any]:
        """Slots `first` to `last`, both included; None where nothing is known."""
        oldest = max(self.first, self.newest - self.slots + 1, first)
        newest = min(self.newest, last)
        if self.newest < 0 or newest < oldest:
            return [None] * (last - first + 1)
        numbers, start, count = self.columns[column], oldest % self.slots, newest - oldest + 1
        values = numbers[start : start + count]
        if start + count > self.slots:
            values = values + numbers[: start + count - self.slots]
        found: list[Any] = values.tolist()
        if numbers.typecode == "f":
            found = [None if isnan(value) else round(value, 2) for value in found]
        return [None] * (oldest - first) + found + [None] * (last - newest)


class _Series:
    def __init__(self) -> None:
        self.rings = [_Ring(step, slots) for step, slots in RINGS]
        self.before: InstanceSample | None = None
        self.at = 0

    def add(self, now: int, sample: InstanceSample) -> None:
        before = self.before
        requests = sample.requests - (before.requests if before else 0)
        errors = sample.errors - (before.errors if before else 0)
        sum_s = sample.duration_sum_s - (before.duration_sum_s if before else 0.0)
        durations = sample.durations
        if requests and before and before.durations:
            durations = [a - b for a, b in zip(durations, before.durations, strict=True)]
        for ring in self.rings:
            ring.add(now, requests, errors, sum_s, durations, sample)
        self.before, self.at = sample, now


class MetricHistory:
    """Series by instance. Sync; the caller gives the time (seconds since the epoch)."""

    def __init__(self) -> None:
        self._series: dict[Key, _Series] = {}

    def add(self, now: float, samples: Iterable[InstanceSample]) -> None:
        """Once a second. Those of instances that are gone keep what they have while there is room."""
        for sample in samples:
            series = self._series.get(sample.key)
            if series is None:
                series = self._series[sample.key] = _Series()
            series.add(int(now), sample)
        surplus = len(self._series) - SERIES
        if surplus > 0:
            silent = sorted((s.at, key) for key, s in self._series.items() if s.at < int(now) - 60)
            for _, key in islice(silent, surplus):
                del self._series[key]

    def read(
        self,
        agent: str,
        now: float,
        window_s: float,
        points: int,
        columns: Sequence[str] = COLUMNS,
        only: Key | None = None,
    ) -> MetricHistory.Read:
        """The finest slots of which at most `points` fill the window (else the coarsest), by instance.

        `times` are the beginnings of the slots, and the last one is the last that is complete.
        """
        fitting = [index for index, (step, slots) in enumerate(RINGS) if window_s / step <= points and window_s <= step * slots]
        index = fitting[0] if fitting else len(RINGS) - 1
        step = RINGS[index][0]
        last = int(now) // step - 1
        first = last - max(1, min(int(window_s // step), points)) + 1
        rows = {}
        for key, series in self._series.items():
            ring = series.rings[index]
            if key[0] == agent and only in (None, key) and ring.newest >= first:
                rows[key] = {name: ring.read(COLUMNS.index(name), first, last) for name in columns}
        return MetricHistory.Read(step, [number * step for number in range(first, last + 1)], rows)

    @dataclass(frozen=True)
    class Read:
        """What was asked for: `step_s` seconds per slot."""

        step_s: int
        times: list[int]
        rows: dict[Key, dict[str, list[Any]]]
