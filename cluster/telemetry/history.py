"""What happened when: 15 minutes by the second, 3 hours by ten seconds, a day by the minute, without a time-series database.

There are three kinds of series, each with columns of its own: instances, what an agent's gateways refused, and the traffic
share of each version. A series is a few ring buffers of plain numbers (about 110 kB for an instance), so that 200 instances
stay far below 50 MB. In the Controller's memory only; for more, scrape the admin port with Prometheus. Percentiles are taken
from the buckets when a slot is written: exact for the slot, and not to be added up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from cluster.telemetry.ring import Ring, Slot, Values
from cluster.telemetry.samples import (
    INSTANCE_COLUMNS,
    REFUSAL_COLUMNS,
    WEIGHT_COLUMNS,
    InstanceSample,
    InstanceSlot,
    RefusalSample,
    RefusalSlot,
    WeightSample,
    WeightSlot,
)
from cluster.telemetry.tally import Key

RINGS = ((1, 900), (10, 1_080), (60, 1_440))  # (seconds per slot, slots)
SERIES = 200  # of each kind; more are kept only while samples arrive
SILENT_S = 60  # a series without a sample for this long may be dropped
COLUMNS = tuple(INSTANCE_COLUMNS)  # readers may choose among these

K = TypeVar("K", bound=Hashable)
S = TypeVar("S", InstanceSample, RefusalSample, WeightSample)


class _Series(Generic[S]):
    def __init__(self, columns: Mapping[str, str], new_slot: Callable[[], Slot[S]]) -> None:
        self.rings: list[Ring[S]] = [Ring(step, slots, columns, new_slot) for step, slots in RINGS]
        self.updated_at = 0
        self._last: S | None = None

    def add(self, now: int, sample: S) -> None:
        added = sample.since(self._last)
        for ring in self.rings:
            ring.add(now, added)
        self._last, self.updated_at = sample, now


class _Table(Generic[K, S]):
    """All series of one kind."""

    def __init__(self, columns: Mapping[str, str], new_slot: Callable[[], Slot[S]]) -> None:
        self._columns = columns
        self._new_slot: Callable[[], Slot[S]] = new_slot
        self._series: dict[K, _Series[S]] = {}

    def __len__(self) -> int:
        return len(self._series)

    def add(self, now: int, key: K, sample: S) -> None:
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(self._columns, self._new_slot)
        series.add(now, sample)

    def trim(self, now: int) -> None:
        """Drop the longest silent series beyond SERIES."""
        surplus = len(self._series) - SERIES
        if surplus > 0:
            silent = sorted(
                ((series.updated_at, key) for key, series in self._series.items() if abs(now - series.updated_at) > SILENT_S),
                key=lambda one: one[0],
            )
            for _, key in islice(silent, surplus):
                del self._series[key]

    def recorded(self, window: Window) -> Iterator[tuple[K, Ring[S]]]:
        """The series with anything in the window."""
        for key, series in self._series.items():
            ring = series.rings[window.ring]
            if ring.newest >= window.first:
                yield key, ring


@dataclass(frozen=True)
class Window:
    """Slots `first` to `last` of the ring with index `ring`."""

    ring: int
    first: int
    last: int

    @property
    def step_s(self) -> int:
        return RINGS[self.ring][0]

    @property
    def times(self) -> list[int]:
        """The beginnings of the slots, in seconds since the epoch."""
        return [number * self.step_s for number in range(self.first, self.last + 1)]

    @classmethod
    def fitting(cls, now: float, window_s: float, points: int) -> Window:
        """The finest slots of which at most `points` fill the window, else the coarsest; the last one is complete."""
        fine = [index for index, (step, slots) in enumerate(RINGS) if window_s / step <= points and window_s <= step * slots]
        ring = fine[0] if fine else len(RINGS) - 1
        step = RINGS[ring][0]
        last = int(now) // step - 1
        return cls(ring, last - max(1, min(int(window_s // step), points)) + 1, last)


@dataclass(frozen=True)
class AgentHistory:
    """The series of one agent over a window."""

    window: Window
    instances: Mapping[Key, Mapping[str, Values]]  # removed ones too; by the columns that were asked for
    refusals: Mapping[str, Values]  # by column
    weights: Mapping[str, Values]  # by version, in percent


class MetricHistory:
    """The three kinds of series. Sync; the caller supplies the time (seconds since the epoch)."""

    def __init__(self) -> None:
        self._instances: _Table[Key, InstanceSample] = _Table(INSTANCE_COLUMNS, InstanceSlot)
        self._refusals: _Table[str, RefusalSample] = _Table(REFUSAL_COLUMNS, RefusalSlot)
        self._weights: _Table[tuple[str, str], WeightSample] = _Table(WEIGHT_COLUMNS, WeightSlot)

    def __repr__(self) -> str:
        return f"<MetricHistory: {len(self._instances)} instances, {len(self._refusals)} agents, {len(self._weights)} versions>"

    def add(self, now: float, samples: Iterable[InstanceSample | RefusalSample | WeightSample]) -> None:
        """Record one second. Removed instances keep their series while there is room."""
        second = int(now)
        for sample in samples:
            if isinstance(sample, InstanceSample):
                self._instances.add(second, sample.key, sample)
            elif isinstance(sample, RefusalSample):
                self._refusals.add(second, sample.agent, sample)
            else:
                self._weights.add(second, (sample.agent, sample.version), sample)
        for table in (self._instances, self._refusals, self._weights):
            table.trim(second)

    def read(self, agent: str, now: float, window_s: float, points: int, columns: Sequence[str] = COLUMNS) -> AgentHistory:
        """At most `points` slots that cover the last `window_s` seconds."""
        window = Window.fitting(now, window_s, points)
        first, last = window.first, window.last
        refusals = next((ring for name, ring in self._refusals.recorded(window) if name == agent), None)
        return AgentHistory(
            window=window,
            instances={
                key: {name: ring.read(name, first, last) for name in columns}
                for key, ring in self._instances.recorded(window)
                if key[0] == agent
            },
            refusals={
                name: refusals.read(name, first, last) if refusals else [None] * (last - first + 1) for name in REFUSAL_COLUMNS
            },
            weights={
                version: ring.read("percent", first, last)
                for (name, version), ring in self._weights.recorded(window)
                if name == agent
            },
        )
