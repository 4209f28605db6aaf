"""Counting: a `Tally` in every gateway, one `Ledger` in the Controller, Prometheus text at the end.

Gateways send what was added since their last observation, so that a gateway's restart never makes a counter go back.
Percentiles come from the buckets, by linear interpolation within one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cluster.messages import InstanceCounts, Observation

# Upper bounds in seconds; one more bucket takes what is slower.
BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
WINDOW_S = 60.0

Key = tuple[str, str, str, str]  # agent, version, region, instance
LABELS = ("agent", "version", "region", "instance")


class Tally:
    """What one gateway saw of one instance. Cheap to add to; `take()` hands over and starts anew."""

    __slots__ = ("active", "codes", "durations", "first_bytes", "sums")

    def __init__(self) -> None:
        self.active = 0
        self._reset()

    def _reset(self) -> None:
        self.codes: dict[int, int] = {}
        self.durations = [0] * (len(BUCKETS_S) + 1)
        self.first_bytes = [0] * (len(BUCKETS_S) + 1)
        self.sums = [0.0, 0.0]

    def add(self, code: int, duration_s: float, first_byte_s: float | None) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1
        self.durations[bisect_left(BUCKETS_S, duration_s)] += 1
        self.sums[0] += duration_s
        if first_byte_s is not None:
            self.first_bytes[bisect_left(BUCKETS_S, first_byte_s)] += 1
            self.sums[1] += first_byte_s

    def take(self) -> InstanceCounts:
        if not self.codes:
            return InstanceCounts(active=self.active)
        counts = InstanceCounts(
            active=self.active,
            codes=self.codes,
            durations=tuple(self.durations),
            duration_sum_s=self.sums[0],
            first_bytes=tuple(self.first_bytes),
            first_byte_sum_s=self.sums[1],
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
        durations=_add(one.durations, other.durations),
        duration_sum_s=one.duration_sum_s + other.duration_sum_s,
        first_bytes=_add(one.first_bytes, other.first_bytes),
        first_byte_sum_s=one.first_byte_sum_s + other.first_byte_sum_s,
    )


def _add(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
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


@dataclass(frozen=True)
class Recent:
    """One instance over the last WINDOW_S seconds."""

    requests: int = 0
    errors: int = 0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None


@dataclass
class _Totals:
    codes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    durations: tuple[int, ...] = ()
    duration_sum_s: float = 0.0
    first_bytes: tuple[int, ...] = ()
    first_byte_sum_s: float = 0.0
    recent: deque[tuple[float, InstanceCounts]] = field(default_factory=deque)


class Gauges(Protocol):
    """What the Controller knows besides: one row per instance, (key, state, up, cpu percent or None)."""

    def rows(self) -> Iterable[tuple[Key, str, bool, float | None]]: ...

    def desired(self) -> Iterable[tuple[str, str, str, int]]: ...


class Ledger:
    """All observations of all gateways. Sync; the caller gives the time (monotonic seconds)."""

    def __init__(self) -> None:
        self._totals: dict[Key, _Totals] = defaultdict(_Totals)
        self._refusals: dict[tuple[str, int], int] = defaultdict(int)
        self._active: dict[str, dict[Key, int]] = {}  # by gateway

    def add(self, seen: Observation, now: float) -> None:
        for key, counts in seen.instances.items():
            if not counts.codes:
                continue
            totals = self._totals[key]
            for code, count in counts.codes.items():
                totals.codes[code] += count
            totals.durations = _add(totals.durations, counts.durations)
            totals.duration_sum_s += counts.duration_sum_s
            totals.first_bytes = _add(totals.first_bytes, counts.first_bytes)
            totals.first_byte_sum_s += counts.first_byte_sum_s
            totals.recent.append((now, counts))
            while totals.recent[0][0] < now - WINDOW_S:
                totals.recent.popleft()
        for refusal, count in seen.refusals.items():
            self._refusals[refusal] += count
        self._active[seen.gateway] = {key: counts.active for key, counts in seen.instances.items()}

    def forget_gateway(self, gateway: str) -> None:
        """It is gone, and what was in flight there with it."""
        self._active.pop(gateway, None)

    def forget_agent(self, agent: str) -> None:
        for key in [key for key in self._totals if key[0] == agent]:
            del self._totals[key]

    def active(self, key: Key) -> int:
        """Requests in flight, summed over the gateways."""
        return sum(counts.get(key, 0) for counts in self._active.values())

    def requests(self, key: Key) -> tuple[int, int]:
        """(all, errors) since the Controller started."""
        codes = self._totals[key].codes if key in self._totals else {}
        return sum(codes.values()), sum(n for code, n in codes.items() if is_error(code))

    def refused(self, agent: str) -> int:
        """Requests that no instance got, since the Controller started."""
        return sum(count for (name, _), count in self._refusals.items() if name == agent)

    def recent(self, key: Key, now: float) -> Recent:
        if key not in self._totals:
            return Recent()
        window = self._totals[key].recent
        while window and window[0][0] < now - WINDOW_S:
            window.popleft()
        if not window:
            return Recent()
        together = InstanceCounts()
        for _, counts in window:
            together = merge(together, counts)
        requests = sum(together.codes.values())
        errors = sum(n for code, n in together.codes.items() if is_error(code))
        return Recent(
            requests=requests,
            errors=errors,
            mean_ms=_ms(together.duration_sum_s / requests),
            p50_ms=_ms(percentile_s(together.durations, 0.5)),
            p95_ms=_ms(percentile_s(together.durations, 0.95)),
        )

    def exposition(self, gauges: Gauges) -> bytes:
        """The whole cluster in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(_Collected(self, gauges))
        return generate_latest(registry)

    def families(self, gauges: Gauges) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "swiftclaw_requests", "Requests answered by an instance, or refused (instance empty), by status code.",
            labels=(*LABELS, "code"),
        )  # fmt: skip
        duration = HistogramMetricFamily(
            "swiftclaw_request_duration_seconds", "From the request's arrival to the end of its answer.",
            labels=LABELS,
        )  # fmt: skip
        first = HistogramMetricFamily(
            "swiftclaw_time_to_first_byte_seconds", "From the request's arrival to the head of its answer.",
            labels=LABELS,
        )  # fmt: skip
        for key, totals in self._totals.items():
            for code, count in sorted(totals.codes.items()):
                requests.add_metric((*key, str(code)), count)
            duration.add_metric(key, _cumulative(totals.durations), totals.duration_sum_s)
            first.add_metric(key, _cumulative(totals.first_bytes), totals.first_byte_sum_s)
        for (agent, code), count in sorted(self._refusals.items()):
            requests.add_metric((agent, "", "", "", str(code)), count)
        yield from (requests, duration, first)
        yield from self._gauges(gauges)

    def _gauges(self, gauges: Gauges) -> Iterator[Metric]:
        active = GaugeMetricFamily("swiftclaw_active_connections", "Requests in flight.", labels=LABELS)
        up = GaugeMetricFamily("swiftclaw_instance_up", "1 when it may take requests.", labels=LABELS)
        cpu = GaugeMetricFamily("swiftclaw_instance_cpu_percent", "Of one core.", labels=LABELS)
        states = GaugeMetricFamily("swiftclaw_instances", "Instances by state.", labels=("agent", "version", "region", "state"))
        desired = GaugeMetricFamily(
            "swiftclaw_desired_instances", "Instances that should run.", labels=("agent", "version", "region")
        )
        counted: dict[tuple[str, str, str, str], int] = defaultdict(int)
        for key, state, is_up, cpu_percent in gauges.rows():
            active.add_metric(key, self.active(key))
            up.add_metric(key, int(is_up))
            if cpu_percent is not None:
                cpu.add_metric(key, cpu_percent)
            counted[(key[0], key[1], key[2], state)] += 1
        for labels, count in sorted(counted.items()):
            states.add_metric(labels, count)
        for agent, version, region, count in gauges.desired():
            desired.add_metric((agent, version, region), count)
        yield from (active, up, cpu, states, desired)


class _Collected:
    """The shape that prometheus_client asks for."""

    def __init__(self, ledger: Ledger, gauges: Gauges) -> None:
        self._ledger, self._gauges = ledger, gauges

    def collect(self) -> Iterator[Metric]:
        return self._ledger.families(self._gauges)


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    rows, total = [], 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts or (0,) * (len(BUCKETS_S) + 1), strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
