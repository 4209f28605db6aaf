"""The observations of all gateways added up: since the Controller started, and over the last minute.

Gateways send what was added since their last observation, so a gateway's restart never makes a counter go back. Observations
are numbered: a gateway resends one until it is acknowledged (if the gateway was killed, another one on its node does:
deployments/gateway/counts_file.py), and it is counted once. Sync; the caller supplies the time (monotonic seconds). Counts
older than the window expire as time passes, so that reads are cheap.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import BUCKETS_S, Key, added, is_error, ms, percentile_s
from policies.sessions.moved import Cause

WINDOW_S = 60.0
RATE_LIMITED = 429
MOST_GATEWAYS = 1000  # whose last batch number is remembered; the most recent ones are kept


@dataclass(frozen=True)
class RecentStats:
    """One instance, or several combined, over the last WINDOW_S seconds."""

    requests: int = 0
    errors: int = 0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @property
    def error_rate(self) -> float:
        """In percent."""
        return round(100 * self.errors / self.requests, 3) if self.requests else 0.0


class SlidingCounts:
    """Sums over the last WINDOW_S seconds."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, int, int, InstanceCounts]] = deque()
        self.requests = self.errors = 0
        self.duration_sum_s = 0.0
        self.durations = [0] * (len(BUCKETS_S) + 1)

    def add(self, now: float, counts: InstanceCounts) -> None:
        requests = sum(counts.codes.values())
        errors = sum(count for code, count in counts.codes.items() if is_error(code))
        self._kept.append((now, requests, errors, counts))
        self._count(1, requests, errors, counts)
        self.expire(now)

    def expire(self, now: float) -> None:
        while self._kept and self._kept[0][0] < now - WINDOW_S:
            _, requests, errors, counts = self._kept.popleft()
            self._count(-1, requests, errors, counts)
        if not self._kept:
            self.duration_sum_s = 0.0  # drop the rounding error

    def _count(self, sign: int, requests: int, errors: int, counts: InstanceCounts) -> None:
        self.requests += sign * requests
        self.errors += sign * errors
        self.duration_sum_s += sign * counts.duration_sum_s
        for bucket, count in enumerate(counts.durations):
            if count:
                self.durations[bucket] += sign * count


@dataclass
class InstanceTotals:
    """One instance since the Controller started."""

    codes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    durations: tuple[int, ...] = ()
    duration_sum_s: float = 0.0
    first_bytes: tuple[int, ...] = ()
    first_byte_sum_s: float = 0.0
    routings: tuple[int, ...] = ()
    routing_sum_s: float = 0.0
    requests: int = 0
    errors: int = 0
    window: SlidingCounts = field(default_factory=SlidingCounts)

    def add(self, counts: InstanceCounts, now: float) -> None:
        for code, count in counts.codes.items():
            self.codes[code] += count
            self.requests += count
            self.errors += count if is_error(code) else 0
        self.durations = added(self.durations, counts.durations)
        self.duration_sum_s += counts.duration_sum_s
        self.first_bytes = added(self.first_bytes, counts.first_bytes)
        self.first_byte_sum_s += counts.first_byte_sum_s
        self.routings = added(self.routings, counts.routings)
        self.routing_sum_s += counts.routing_sum_s
        if counts.codes:
            self.window.add(now, counts)


class MetricTotals:
    """The sums of all gateways' observations."""

    def __init__(self) -> None:
        self.instances: dict[Key, InstanceTotals] = {}
        self.refusals: dict[tuple[str, int], int] = defaultdict(int)  # (agent, status) of requests that reached no instance
        self.retries: dict[str, int] = defaultdict(int)  # by agent
        self.moved_sessions: dict[tuple[str, Cause], int] = defaultdict(int)  # by (agent, cause)
        self._active: dict[str, dict[Key, int]] = {}  # by gateway
        self._queued: dict[str, dict[str, int]] = {}  # by gateway, then agent
        self.tasks: dict[str, int] = {}  # by gateway: unfinished asyncio tasks
        self._distances_ms: dict[str, dict[str, dict[str, float]]] = {}  # by gateway
        self._batches: dict[str, int] = {}  # by gateway, removed ones too: the last batch that was counted

    def __repr__(self) -> str:
        requests = sum(totals.requests for totals in self.instances.values())
        return f"<MetricTotals: {requests} requests to {len(self.instances)} instances, {len(self._active)} gateways>"

    def add(self, observation: Observation, now: float) -> bool:
        """Count an observation. False if it is older than the gateway's last one: then nothing of it was used."""
        gateway = observation.gateway
        counted = self._batches.pop(gateway, 0)
        if observation.batch:
            self._batches[gateway] = max(counted, observation.batch)
            if len(self._batches) > MOST_GATEWAYS:
                del self._batches[next(iter(self._batches))]
        if observation.batch and observation.batch < counted:
            return False
        if not observation.batch or observation.batch > counted:
            self._count(observation, now)
        self._active[gateway] = {key: counts.active for key, counts in observation.instances.items() if counts.active}
        self._queued[gateway] = dict(observation.queued)
        self.tasks[gateway] = observation.tasks
        self._distances_ms[gateway] = observation.distances_ms
        current = self._active[gateway] or observation.queued or observation.distances_ms or observation.tasks
        if not current:  # the last observation of a stopped gateway
            self.forget_gateway(gateway)
        return True

    def _count(self, observation: Observation, now: float) -> None:
        for key, counts in observation.instances.items():
            if counts.codes or counts.routings:
                totals = self.instances.get(key)
                if totals is None:
                    totals = self.instances[key] = InstanceTotals()
                totals.add(counts, now)
        for refusal, count in observation.refusals.items():
            self.refusals[refusal] += count
        for agent, count in observation.retries.items():
            self.retries[agent] += count
        for move, count in observation.moved_sessions.items():
            self.moved_sessions[move] += count

    def forget_gateway(self, gateway: str) -> None:
        """Drop the current values of a removed gateway; its counts stay."""
        self._active.pop(gateway, None)
        self._queued.pop(gateway, None)
        self.tasks.pop(gateway, None)
        self._distances_ms.pop(gateway, None)

    def active(self, key: Key) -> int:
        """Requests in flight, summed over the gateways."""
        return sum(counts.get(key, 0) for counts in self._active.values())

    def queued(self, agent: str) -> int:
        """Requests in the wait queues, summed over the gateways."""
        return sum(counts.get(agent, 0) for counts in self._queued.values())

    def measured(self) -> dict[tuple[str, str], float]:
        """Round-trip milliseconds by pair of regions (in name order): the minimum of all gateways, as the rest is queueing."""
        least: dict[tuple[str, str], float] = {}
        for measured in self._distances_ms.values():
            for one, others in measured.items():
                for other, took in others.items():
                    pair = (min(one, other), max(one, other))
                    least[pair] = min(took, least.get(pair, took))
        return least

    def requests(self, key: Key) -> tuple[int, int]:
        """(requests, errors) since the Controller started."""
        totals = self.instances.get(key)
        return (totals.requests, totals.errors) if totals else (0, 0)

    def refused(self, agent: str) -> int:
        """Requests that reached no instance, since the Controller started."""
        return sum(count for (name, _), count in self.refusals.items() if name == agent)

    def rate_limited(self, agent: str) -> int:
        """Requests rejected by a rate limit; part of `refused`."""
        return self.refusals.get((agent, RATE_LIMITED), 0)

    def recent(self, key: Key, now: float) -> RecentStats:
        return self.recently([key], now)

    def recently(self, keys: Iterable[Key], now: float) -> RecentStats:
        """All these instances combined over the last WINDOW_S seconds."""
        windows = [self.instances[key].window for key in keys if key in self.instances]
        for window in windows:
            window.expire(now)
        requests = sum(window.requests for window in windows)
        if not requests:
            return RecentStats()
        durations = windows[0].durations
        if len(windows) > 1:
            durations = [sum(column) for column in zip(*(window.durations for window in windows), strict=True)]
        return RecentStats(
            requests=requests,
            errors=sum(window.errors for window in windows),
            mean_ms=ms(sum(window.duration_sum_s for window in windows) / requests),
            p50_ms=ms(percentile_s(durations, 0.5)),
            p95_ms=ms(percentile_s(durations, 0.95)),
            p99_ms=ms(percentile_s(durations, 0.99)),
        )
