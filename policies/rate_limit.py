"""How many requests may one user send?

`LIMITERS` is the registry of `rateLimit.strategy`. Sliding window (the default) is exact: never more than `requests` in
any window, no refusal below that, one timestamp kept per request. Fixed window keeps one number per key and allows
twice the limit around a boundary. Token bucket: a burst of `requests`, then an even flow.
Refusals never count, and keys share nothing. Several gateways share one limit by exchanging their admissions
(`drain_admissions`, `absorb`): it is exceeded by no more than what arrives elsewhere between two exchanges.
Source: the sliding log; headers are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from struct import pack
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

MOST_KEYS = 1_000_000  # per limiter; above that the least recently admitted are forgotten early
MAX_UNSENT = 100_000  # admissions kept for the other gateways until the next exchange
LONGEST_KEY = 64
SHARDS = 64
DOUBLE = 8  # bytes
ALMOST = 1e-6  # of a token: what rounding may take away


@dataclass(frozen=True)
class RateRule:
    """At most `requests` in `window_s` seconds per value of `key`, a field of the body or a header; None: in all."""

    requests: int
    window_s: float
    key: str | None = None
    strategy: str = "sliding-window"  # of LIMITERS


class Decision(NamedTuple):
    """`remaining`: how many more would be admitted now. `reset_s`: until there will be more than that."""

    allowed: bool
    remaining: int
    retry_after_s: float  # 0 when allowed
    reset_s: float


class ExpiringKeys(Generic[T]):
    """A dict whose keys expire some time after they were last put: a few at a time, so that no request waits for it.

    Keys are put into the young half. Each `idle_s` the young half becomes the old one; a key that is still there another
    `idle_s` later has not been put since. In shards: growing a dict of a million would stall the process.
    """

    __slots__ = ("_left", "_most", "_old", "_size", "_turned", "_young", "idle_s")

    def __init__(self, idle_s: float, most: int = MOST_KEYS) -> None:
        self.idle_s = idle_s
        self._most = most
        self._size = 0
        self._young: list[dict[str, T]] = [{} for _ in range(SHARDS)]
        self._old: list[dict[str, T]] = [{} for _ in range(SHARDS)]
        self._left = 0  # old shards from here on are empty
        self._turned = float("-inf")

    def __len__(self) -> int:
        return self._size

    def get(self, key: str) -> T | None:
        shard = hash(key) % SHARDS
        value = self._young[shard].get(key)
        return self._old[shard].get(key) if value is None else value

    def put(self, key: str, value: T, now: float) -> None:
        shard = hash(key) % SHARDS
        young = self._young[shard]
        if key not in young and self._old[shard].pop(key, None) is None:
            self._size += 1
        young[key] = value
        self.sweep(now, 2)

    def sweep(self, now: float, most: int) -> None:
        """Lets up to `most` idle keys go."""
        if now < self._turned + self.idle_s and self._size <= self._most:
            return
        while self._left and most:
            shard = self._old[self._left - 1]
            if shard:
                shard.popitem()
                self._size -= 1
                most -= 1
            else:
                self._left -= 1
                self._old[self._left] = {}  # an emptied dict keeps its size
        if not self._left:
            self._old, self._young, self._left = self._young, self._old, SHARDS
            self._turned = now


class Limiter(ABC, Generic[T]):
    """At most `requests` per `window_s` seconds and key. `shared`: other gateways must receive the admissions."""

    def __init__(self, requests: int, window_s: float, shared: bool = False) -> None:
        self._keys: ExpiringKeys[T] = ExpiringKeys(window_s)
        self._unsent: deque[tuple[str, float]] | None = deque(maxlen=MAX_UNSENT) if shared else None
        self.update(requests, window_s)

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.requests} per {self.window_s:g} s, {len(self)} keys>"

    def update(self, requests: int, window_s: float) -> None:
        """New settings, in force at once. What was admitted stays counted, but for a fixed window of a new length."""
        if requests < 1 or not window_s > 0:
            raise ValueError(f"{requests!r} requests per {window_s!r} s: both must be more than 0")
        self.requests = requests
        self.window_s = self._keys.idle_s = window_s

    def admit(self, key: str, now: float) -> Decision:
        decision = self.peek(key, now)
        if decision.allowed:
            self.commit(key, now)
        else:
            self.sweep(now)
        return decision

    @abstractmethod
    def peek(self, key: str, now: float) -> Decision:
        """What `admit` would return; counts nothing."""

    def commit(self, key: str, now: float) -> None:
        """Counts a request that `peek` has allowed."""
        self._count(key, (now,), now)
        if self._unsent is not None:
            self._unsent.append((key, now))

    def absorb(self, key: str, timestamps: Iterable[float], now: float) -> None:
        """Counts the admissions of other gateways; their times by this gateway's clock, in any order."""
        times = sorted(min(time, now) for time in timestamps)
        if times:
            self._count(key, times, now)

    def drain_admissions(self) -> list[tuple[str, float]]:
        """Key and time of each admission here since the last call."""
        admissions = list(self._unsent or ())
        if self._unsent:
            self._unsent.clear()
        return admissions

    def sweep(self, now: float, most: int = 2) -> None:
        """Drops idle keys. Admissions and refusals do so in passing; call it periodically for times without requests."""
        self._keys.sweep(now, most)

    @abstractmethod
    def _count(self, key: str, times: Sequence[float], now: float) -> None:
        """`times` ascend and end by `now`."""


class SlidingWindow(Limiter[bytearray]):
    """The times of each key's newest admissions, ascending. What was admitted at 0 is forgotten at `window_s`.

    Packed doubles: no Python object takes less memory, is shortened at its front as cheaply, and is ignored by the garbage
    collector, which would stall the process when scanning a million objects.
    """

    def peek(self, key: str, now: float) -> Decision:
        packed = self._keys.get(key)
        if packed is None:
            return Decision(True, self.requests - 1, 0.0, self.window_s)
        times = memoryview(packed).cast("d")
        past = _past(times, now - self.window_s)
        used = len(times) - past
        if used >= self.requests:
            wait_s = max(0.0, times[-self.requests] + self.window_s - now)
            return Decision(False, 0, wait_s, wait_s)
        oldest = times[past] if used else now
        return Decision(True, self.requests - used - 1, 0.0, oldest + self.window_s - now)

    def _count(self, key: str, times: Sequence[float], now: float) -> None:
        packed = self._keys.get(key) or bytearray()
        with memoryview(packed) as view, view.cast("d") as known:  # released before `packed` changes its length
            past = _past(known, now - self.window_s)
            merged = sorted((*known, *times)) if known and times[0] < known[-1] else None
        if merged is None:
            packed += pack(f"{len(times)}d", *times)
        else:
            packed = bytearray(pack(f"{len(merged)}d", *merged))
        surplus = max(past, len(packed) // DOUBLE - self.requests)  # older ones decide nothing
        if surplus > 0:
            del packed[: surplus * DOUBLE]
        self._keys.put(key, packed, now)


class FixedWindow(Limiter["tuple[float, int]"]):
    """The number of each key's newest window, and how many it has admitted. Windows begin at multiples of `window_s`."""

    def peek(self, key: str, now: float) -> Decision:
        window = now // self.window_s
        newest, used = self._keys.get(key) or (window, 0)
        if newest != window:
            used = 0
        reset_s = (window + 1) * self.window_s - now
        if used >= self.requests:
            return Decision(False, 0, reset_s, reset_s)
        return Decision(True, self.requests - used - 1, 0.0, reset_s)

    def _count(self, key: str, times: Sequence[float], now: float) -> None:
        window = now // self.window_s
        newest, used = self._keys.get(key) or (window, 0)
        if newest != window:
            used = 0
        used += sum(time // self.window_s == window for time in times)
        self._keys.put(key, (window, used), now)


class TokenBucket(Limiter["tuple[float, float]"]):
    """How many tokens each key had, and when. Below zero: other gateways have admitted more than there were."""

    def peek(self, key: str, now: float) -> Decision:
        tokens, _ = self._at(now, self._keys.get(key))
        token_s = self.window_s / self.requests
        if tokens < 1 - ALMOST:
            wait_s = (1 - tokens) * token_s
            return Decision(False, 0, wait_s, wait_s)
        left = tokens - 1
        remaining = int(left + ALMOST)
        return Decision(True, remaining, 0.0, (remaining + 1 - left) * token_s)

    def _count(self, key: str, times: Sequence[float], now: float) -> None:
        known = self._keys.get(key)
        for time in times:
            tokens, then = self._at(time, known)
            known = (tokens - 1, then)
        assert known is not None, "there is at least one time"
        self._keys.put(key, known, now)

    def _at(self, now: float, known: tuple[float, float] | None) -> tuple[float, float]:
        if known is None:
            return self.requests, now
        tokens, then = known
        if now <= then:
            return known
        return min(self.requests, tokens + (now - then) * self.requests / self.window_s), now


LIMITERS: dict[str, type[SlidingWindow] | type[FixedWindow] | type[TokenBucket]] = {
    "sliding-window": SlidingWindow,
    "fixed-window": FixedWindow,
    "token-bucket": TokenBucket,
}


class TightestLimit(NamedTuple):
    """The result of several limits: the decision of the tightest one, and that limiter."""

    decision: Decision
    limiter: Limiter[Any]


def admit_all(limits: Iterable[tuple[Limiter[Any], str]], now: float) -> TightestLimit | None:
    """Checks every limit, each with its key; the request counts for all of them or for none. No limits: None.

    The tightest is the refusal that lasts longest, or else the one that leaves the fewest requests.
    """
    peeks = [(limiter, key, limiter.peek(key, now)) for limiter, key in limits]
    if not peeks:
        return None
    allowed = all(decision.allowed for _, _, decision in peeks)
    for limiter, key, _ in peeks:
        if allowed:
            limiter.commit(key, now)
        else:
            limiter.sweep(now)
    limiter, _, tightest = min(peeks, key=lambda each: _room(each[2]))
    return TightestLimit(tightest, limiter)


def headers(decision: Decision, requests: int, window_s: float, name: str = "default") -> dict[str, str]:
    """The response headers about the limit, admitted or not. Whole seconds, rounded up."""
    least_s = 0 if decision.allowed else 1
    fields = {
        "RateLimit-Policy": f'"{name}";q={requests};w={_whole(window_s, 1)}',
        "RateLimit": f'"{name}";r={decision.remaining};t={_whole(decision.reset_s, least_s)}',
    }
    if not decision.allowed:
        fields["Retry-After"] = str(_whole(decision.retry_after_s, 1))
    return fields


def key_of(value: str) -> str:
    """A key of bounded size, however long the name that a client sends."""
    if len(value) <= LONGEST_KEY:
        return value
    return "#" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()  # longer than any short one


def _past(times: Sequence[float], horizon: float) -> int:
    """How many of the ascending times are not after `horizon`; usually none."""
    return bisect_right(times, horizon) if times and times[0] <= horizon else 0


def _room(decision: Decision) -> tuple[bool, float, int, float]:
    return decision.allowed, -decision.retry_after_s, decision.remaining, -decision.reset_s


def _whole(seconds: float, least: int) -> int:
    return max(least, ceil(round(seconds, 6)))  # 60.000000001 is noise, not a second more
