"""The report of a failover test: the object that `--json` prints. Times are in seconds since the instance was taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RequestCounts:
    """`failed` excludes `refused`. `lost`: failures that the balancer should have prevented; `unavoidable`: the others."""

    sent: int
    ok: int
    refused: int
    failed: int
    lost: int
    unavoidable: int
    saved_by_retry: int


@dataclass(frozen=True)
class ErrorCount:
    """One type of error with its HTTP status; `message` is that of the first one."""

    type: str
    status: int
    count: int
    lost: int
    message: str


@dataclass(frozen=True)
class TimelineBucket:
    """The requests that began in one slice of time, and how many of them the instance answered."""

    from_s: int
    requests: int
    by_instance: int
    failed: int


@dataclass(frozen=True)
class Timeline:
    """Buckets of `bucket_s` seconds; the one from 0 begins when the instance was taken out."""

    bucket_s: int
    buckets: Sequence[TimelineBucket]


@dataclass(frozen=True)
class InstanceShare:
    """Shares in percent. `expected` None: the instance should have received no request; `observed` None: there were none."""

    id: str
    expected: float | None
    observed: float | None
    requests: int


@dataclass(frozen=True)
class TrafficShares:
    """How the answered requests were shared while the instance was out. `exact`: the expected shares must hold exactly."""

    strategy: str
    exact: bool
    from_s: float | None
    to_s: float | None
    requests: int
    instances: Sequence[InstanceShare]


@dataclass(frozen=True)
class FailoverReport:
    """`last_answer_s`: the instance's last answer before it was out; `back_s`: its first one afterwards, None: none."""

    agent: str
    instance: str
    mode: str  # kill | drain | unhealthy
    duration_s: float
    rate: float  # probe requests per second
    passed: bool
    verdict: str
    requests: RequestCounts
    errors: Sequence[ErrorCount]
    last_answer_s: float
    back_s: float | None
    timeline: Timeline
    shares: TrafficShares

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
