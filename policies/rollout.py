"""Which version answers a request, and may the canary get more traffic?

Sessions lie on a line of 0 to 100 by a hash of (agent, session); those below the canary's percentage are the canary's, so
raising it moves sessions only from stable to canary, each at most once, and lowering it only back. Requests without a
session take turns: N of every 100 at each gateway, evenly spread, not by chance. The analysis compares the canary with
stable over the same time; too few requests are inconclusive, and an inconclusive result never promotes. Not for
keeping a session on its instance: that is the session token's (policies/sessions/affinity.py).
Source: Bresenham's line for the turns; Kayenta and Flagger for the analysis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from policies.sessions.affinity import hash_of

STEPS_PER_PERCENT = 100  # percentages are kept to 0.01
WHOLE = 100 * STEPS_PER_PERCENT

Verdict = Literal["worse", "inconclusive", "better-or-equal"]


def in_canary(key: str | tuple[str, ...], percent: float) -> bool:
    """Whether the session's point on the line is below `percent`. `key` is (agent, session), the same at every gateway."""
    names = (key,) if isinstance(key, str) else key
    return 100 * hash_of("version", *names) < percent * 2.0**64  # a Python int and float compare exactly


class Turns:
    """Whose turn is it, for requests without a session? One per agent and gateway.

    Of any n requests in a row under one percentage the canary gets n * percent / 100, rounded up or down. A new
    percentage holds from the next request, and earlier requests are not made up for: no burst, however often it changes.
    """

    __slots__ = ("_owed", "_step")

    def __init__(self, percent: float, rng: Random | None = None) -> None:
        """`rng` draws the phase, so that gateways do not send to the canary at the same moment; None: phase 0."""
        self._owed = rng.randrange(WHOLE) if rng else 0  # to the canary, in parts of one request
        self.update(percent)

    def __repr__(self) -> str:
        return f"<Turns {self.percent:g} % canary, {self._owed / WHOLE:.2f} requests owed>"

    @property
    def percent(self) -> float:
        return self._step / STEPS_PER_PERCENT

    def update(self, percent: float) -> None:
        if not 0 <= percent <= 100:
            raise ValueError(f"percent: {percent!r} is not from 0 to 100")
        self._step = round(percent * STEPS_PER_PERCENT)

    def canary(self) -> bool:
        """Whether the next request goes to the canary. Each call takes a turn."""
        self._owed += self._step
        if self._owed < WHOLE:
            return False
        self._owed -= WHOLE
        return True


@dataclass(frozen=True, slots=True)
class VersionStats:
    """The results of one version over a period. `latency_ms`: the same figure for both (median, mean …); None: unknown.

    `is_tripped`: the circuit breakers of all its instances have opened, so that it receives hardly any requests. `crashes`: how
    often one of its instances has crashed in a row, each time soon after its start (policies/lifecycle/crash_backoff.py).
    """

    requests: int
    errors: int
    latency_ms: float | None = None
    is_tripped: bool = False
    crashes: int = 0

    @property
    def error_percent(self) -> float:
        return 100 * self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: str  # a sentence without a full stop


def judge(
    canary: VersionStats, stable: VersionStats, *, max_error_rate: float, max_latency_ratio: float, min_requests: int
) -> Judgement:
    """The canary against stable over the same time. `max_error_rate` in percent, `max_latency_ratio` times stable's.

    A canary whose breakers have all opened is judged by the requests that opened them: it would never reach `min_requests`.
    One that crashes answers well in between: after its first crash it has to run without one, the second in a row is too many.
    """
    crashes = canary.crashes > stable.crashes
    if crashes and canary.crashes > 1:
        return Judgement("worse", f"an instance of the canary has crashed {canary.crashes} times in a row soon after its start")
    if canary.requests < min_requests and not (canary.is_tripped and canary.errors):
        return Judgement("inconclusive", f"the canary has answered {canary.requests} of the {min_requests} requests needed")
    if canary.error_percent > max_error_rate:
        return _over_error_rate(canary, stable, max_error_rate)
    if crashes:
        return Judgement("inconclusive", "an instance of the canary has crashed once soon after its start")
    if canary.requests < min_requests:
        return Judgement("inconclusive", "the circuit breakers of all the canary's instances are open")
    if stable.requests < min_requests:
        return Judgement(
            "inconclusive", f"the stable version has answered {stable.requests} of the {min_requests} requests needed"
        )
    if canary.latency_ms is None or stable.latency_ms is None:
        missing = "the canary" if canary.latency_ms is None else "the stable version"
        return Judgement("inconclusive", f"the latency of {missing} is not known")
    took = f"the canary takes {canary.latency_ms:.4g} ms, the stable version {stable.latency_ms:.4g} ms"
    if canary.latency_ms > max_latency_ratio * stable.latency_ms:
        return Judgement("worse", f"{took}: more than {max_latency_ratio:g} times as long")
    return Judgement("better-or-equal", f"{canary.error_percent:.4g} % errors in {canary.requests} requests; {took}")


def next_step(steps: Sequence[float], percent: float) -> float | None:
    """The first of the rising `steps` above `percent`; None after the last."""
    return next((step for step in steps if step > percent), None)


def _over_error_rate(canary: VersionStats, stable: VersionStats, max_error_rate: float) -> Judgement:
    """Where stable fails as much, a shared dependency is at fault: no reason to roll back, and none to promote."""
    fails = f"{canary.error_percent:.4g} % of the canary's {canary.requests} requests failed (allowed: {max_error_rate:g} %)"
    if canary.is_tripped:
        fails += ", and all its circuit breakers are open"
    if stable.requests and stable.error_percent >= canary.error_percent:
        return Judgement("inconclusive", f"{fails}; the stable version fails as often ({stable.error_percent:.4g} %)")
    return Judgement("worse", fails)
