"""May an instance that keeps failing be asked again?

Closed: every request may go. After `failure_threshold` failures in a row open: none may, for `reset_timeout_s`. Then
half-open: one probe at a time; its success closes the breaker, its failure opens it for twice as long, up to 5 minutes,
and the doubling is forgotten on recovery. A generation number, read when sending, tells results of before the last
change from those that count. What is a failure is the caller's to say: never a 429, an overload refusal or a client
that left. Not a health check: it learns only from traffic.
Source: Nygard, Release It!; the generation is sony/gobreaker's, the growing time out Envoy's outlier detection.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["closed", "open", "half-open"]

LONGEST_S = 300.0  # open at most this long; a longer reset timeout is obeyed, never doubled
HEAD_START_S = 1.0  # within this the one that tripped first has told the others how its probe went
MOST_DOUBLINGS = 20


class BreakerUpdate(NamedTuple):
    """What one gateway tells the others when its breaker has changed. `remaining_s`: as of its delivery."""

    state: State
    remaining_s: float = 0.0
    doublings: int = 0


class Breaker:
    """One instance (one process of it) as one gateway sees it. `state` and `generation` are for reading.

    Each request: `may` to filter, `allow` once it is picked, then read `generation`; it ends in one `record`, or in
    `abandon` if it ended without a verdict. What was sent without `allow` (panic) reports nothing.
    """

    __slots__ = (
        "_doublings",
        "_failures",
        "_probing",
        "_since",
        "_until",
        "failure_threshold",
        "generation",
        "reset_timeout_s",
        "state",
    )

    def __init__(self, failure_threshold: int, reset_timeout_s: float) -> None:
        self.state: State = "closed"
        self.generation = 0
        self._failures = 0  # in a row, while closed
        self._probing = False  # the one place of half-open is taken
        self._doublings = 0
        self._since = self._until = 0.0  # when it opened, and until when
        self._set(failure_threshold, reset_timeout_s)

    def __repr__(self) -> str:
        detail = {
            "closed": f"{self._failures} of {self.failure_threshold} failures",
            "open": f"until {self._until:g} s",
            "half-open": "probing" if self._probing else "no probe",
        }
        return f"<Breaker {self.state}, {detail[self.state]}>"

    def may(self, now: float) -> bool:
        """What `allow` would say; changes nothing."""
        if self.state == "closed":
            return True
        return now >= self._until if self.state == "open" else not self._probing

    def allow(self, now: float) -> bool:
        """True: send one request. Unless closed, that is the probe, and nobody else is let through until it ends."""
        if self.state == "closed":
            return True
        if not self.may(now):
            return False
        self.state, self._probing = "half-open", True
        self.generation += 1
        return True

    def record(self, ok: bool, now: float, generation: int) -> bool:
        """How a request went. True if that changed the state: tell the others (`news`)."""
        if generation != self.generation:
            return False
        if self.state == "closed":
            self._failures = 0 if ok else self._failures + 1
            if self._failures < self.failure_threshold:
                return False
            self._open(now, doublings=0)
            return True
        if not self._probing:
            return False
        if ok:
            self._close()
        else:
            self._open(now, self._doublings + 1)
        return True

    def abandon(self, generation: int) -> None:
        """A request ended without a verdict (its client left): if it was the probe, the next one may go."""
        if self._probing and generation == self.generation:
            self._probing = False
            self.generation += 1

    def retry_after_s(self, now: float) -> float:
        """Until the next probe may go. 0: now, or as soon as the one under way has ended."""
        return max(0.0, self._until - now) if self.state == "open" else 0.0

    def trip(self, now: float) -> bool:
        """Opens on evidence from elsewhere, as failures would have. True if that changed the state."""
        if self.state == "open":
            return False
        self._open(now, self._doublings + 1 if self.state == "half-open" else 0)
        return True

    def news(self, now: float) -> BreakerUpdate:
        return BreakerUpdate(self.state, self.retry_after_s(now), self._doublings)

    def adopt(self, news: BreakerUpdate, now: float) -> bool:
        """Another gateway's change; news may come late, twice or in any order. True if that changed the state.

        The other one probes first: here the breaker stays open a second longer. Our own probe in flight knows
        better than a trip elsewhere; a trip of ours within the last second knows better than a recovery elsewhere.
        """
        if news.state == "closed":
            if self.state == "closed" or (self.state == "open" and now < self._since + HEAD_START_S):
                return False
            self._close()
            return True
        if news.state == "half-open" or self._probing:
            return False
        if self.state != "closed" and news.doublings <= self._doublings:
            return False  # the trip that is known here already, or an older one
        before = self.state
        self._open(now, news.doublings)
        self._until = now + max(0.0, news.remaining_s) + HEAD_START_S
        return before != "open"

    def update(self, failure_threshold: int, reset_timeout_s: float, now: float) -> None:
        """New settings, in force at once: one that is open stays so for no longer than they say."""
        self._set(failure_threshold, reset_timeout_s)
        self._until = min(self._until, now + self._open_s())

    def _set(self, failure_threshold: int, reset_timeout_s: float) -> None:
        if failure_threshold < 1:
            raise ValueError(f"failure_threshold: {failure_threshold!r} is not at least 1")
        if not reset_timeout_s > 0:
            raise ValueError(f"reset_timeout_s: {reset_timeout_s!r} is not more than 0")
        self.failure_threshold = failure_threshold
        self.reset_timeout_s = reset_timeout_s

    def _open(self, now: float, doublings: int) -> None:
        self.state, self._probing = "open", False
        self.generation += 1
        self._doublings = min(doublings, MOST_DOUBLINGS)
        self._since, self._until = now, now + self._open_s()

    def _close(self) -> None:
        self.state, self._probing = "closed", False
        self.generation += 1
        self._failures = self._doublings = 0

    def _open_s(self) -> float:
        return min(self.reset_timeout_s * 2.0**self._doublings, max(LONGEST_S, self.reset_timeout_s))
