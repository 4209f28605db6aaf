"""The three kinds of series that the history keeps: the columns of each, one sample of it, and what a slot makes of samples.

Counts in samples only grow, so that a missed second loses nothing: its requests appear with the next sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

from cluster.telemetry.ring import REAL, WHOLE
from cluster.telemetry.tally import BUCKETS_S, Key, percentile_s

INSTANCE_COLUMNS = {
    "requests": WHOLE, "errors": WHOLE, "mean_ms": REAL, "p50_ms": REAL, "p95_ms": REAL, "p99_ms": REAL,
    "connections": WHOLE, "cpu": REAL,
}  # fmt: skip
REFUSAL_COLUMNS = {"requests": WHOLE, "rate_limited": WHOLE, "queued": WHOLE}
WEIGHT_COLUMNS = {"percent": WHOLE}


@dataclass(frozen=True)
class InstanceSample:
    """One instance. Counts are since the Controller started; `connections` and `cpu` are current values."""

    key: Key
    requests: int
    errors: int
    duration_sum_s: float
    durations: Sequence[int]
    connections: int
    cpu: float | None = None

    def since(self, before: InstanceSample | None) -> InstanceSample:
        """The same instance with the counts added since `before`."""
        if before is None:
            return self
        requests, durations = self.requests - before.requests, self.durations
        if requests and before.durations:
            durations = [now - earlier for now, earlier in zip(durations, before.durations, strict=True)]
        return replace(
            self,
            requests=requests,
            errors=self.errors - before.errors,
            duration_sum_s=self.duration_sum_s - before.duration_sum_s,
            durations=durations,
        )


@dataclass(frozen=True)
class RefusalSample:
    """Requests to an agent that reached no instance. Counts are since the Controller started; `queued` is current."""

    agent: str
    requests: int  # without the rate-limited ones
    rate_limited: int
    queued: int

    def since(self, before: RefusalSample | None) -> RefusalSample:
        """The same agent with the counts added since `before`."""
        if before is None:
            return self
        requests, rate_limited = self.requests - before.requests, self.rate_limited - before.rate_limited
        return replace(self, requests=requests, rate_limited=rate_limited)


@dataclass(frozen=True)
class WeightSample:
    """The share of an agent's traffic that a version receives, in percent."""

    agent: str
    version: str
    percent: float

    def since(self, before: WeightSample | None) -> WeightSample:
        """Unchanged: a share is no count."""
        return self


class InstanceSlot:
    def __init__(self) -> None:
        self._requests = self._errors = self._samples = self._connections = 0
        self._sum_s = self._cpu = 0.0
        self._durations: Sequence[int] = (0,) * (len(BUCKETS_S) + 1)
        self._times = {"mean_ms": nan, "p50_ms": nan, "p95_ms": nan, "p99_ms": nan}

    def add(self, sample: InstanceSample) -> None:
        self._requests += sample.requests
        self._errors += sample.errors
        self._sum_s += sample.duration_sum_s
        self._samples += 1
        self._connections = max(self._connections, sample.connections)
        self._cpu += nan if sample.cpu is None else sample.cpu
        if sample.requests:
            self._durations = [a + b for a, b in zip(self._durations, sample.durations, strict=True)]
            self._times = {
                "mean_ms": 1000 * self._sum_s / self._requests,
                **{f"p{share}_ms": self._percentile_ms(share / 100) for share in (50, 95, 99)},
            }

    def _percentile_ms(self, share: float) -> float:
        value = percentile_s(self._durations, share)
        return nan if value is None else 1000 * value

    def values(self) -> Mapping[str, float]:
        return {
            "requests": self._requests,
            "errors": self._errors,
            "connections": self._connections,
            "cpu": self._cpu / self._samples if self._samples else nan,
            **self._times,
        }


class RefusalSlot:
    def __init__(self) -> None:
        self._requests = self._rate_limited = self._queued = 0

    def add(self, sample: RefusalSample) -> None:
        self._requests += sample.requests
        self._rate_limited += sample.rate_limited
        self._queued = max(self._queued, sample.queued)

    def values(self) -> Mapping[str, float]:
        return {"requests": self._requests, "rate_limited": self._rate_limited, "queued": self._queued}


class WeightSlot:
    def __init__(self) -> None:
        self._percent = 0.0

    def add(self, sample: WeightSample) -> None:
        self._percent = max(self._percent, sample.percent)

    def values(self) -> Mapping[str, float]:
        return {"percent": round(self._percent)}
