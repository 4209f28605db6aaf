"""May an instance that keeps failing receive another request?

Closed: every request may. After `failure_threshold` failures in a row open: none may, for `reset_timeout_s`. Then
half-open: one probe at a time; its success closes the breaker, its failure opens it for twice as long, up to 5 minutes,
and the doubling is forgotten on recovery. A generation number, read when sending, tells results from before the last
change from those that count. The caller decides what is a failure: never a 429, an overload refusal or a client that
disconnected. Not a health check: it learns only from traffic.
Source: Nygard, Release It!; the generation is sony/gobreaker's, the growing time out Envoy's outlier detection.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["closed", "open", "half-open"]

LONGEST_S = 300.0  # open at most this long; a longer reset timeout holds, and is never doubled
HEAD_START_S = 1.0  # within this time the gateway that opened first has reported how its probe went
MOST_DOUBLINGS = 20


class BreakerUpdate(NamedTuple):
    """What one gateway reports to the others when its breaker has changed. `remaining_s`: as of its delivery."""

    state: State
    remaining_s: float = 0.0
    doublings: int = 0


class Breaker:
    """One instance (one process of it) as one gateway sees it. `state` and `generation` are for reading.

    Each request: `may` to filter, `allow` once it is picked, then read `generation`; it ends in one `record`, or in
    `abandon` if it ended without a result. A request sent without `allow` (panic) reports nothing.
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
        self._probing = False  # half-open: the one probe is in flight
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
        """What `allow` would return; changes nothing."""
        if self.state == "closed":
            return True
        return now >= self._until if self.state == "open" else not self._probing

    def allow(self, now: float) -> bool:
        """True: send one request. Unless closed, it is the probe, and no other request may until it ends."""
        if self.state == "closed":
            return True
        if not self.may(now):
            return False
        self.state, self._probing = "half-open", True
        self.generation += 1
        return True

    def record(self, ok: bool, now: float, generation: int) -> bool:
        """The result of a request. True if that changed the state: send the others its `report`."""
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
        """A request ended without a result (its client disconnected): if it was the probe, another may be sent."""
        if self._probing and generation == self.generation:
            self._probing = False
            self.generation += 1

    def retry_after_s(self, now: float) -> float:
        """Until the next probe may be sent. 0: now, or as soon as the current one has ended."""
        return max(0.0, self._until - now) if self.state == "open" else 0.0

    def report(self, now: float) -> BreakerUpdate:
        """What the other gateways receive."""
        return BreakerUpdate(self.state, self.retry_after_s(now), self._doublings)

    def merge_remote(self, remote: BreakerUpdate, now: float) -> bool:
        """Another gateway's report, which may arrive late, twice or in any order. True if it changed the state.

        The other gateway probes first: here the breaker stays open a second longer. A probe of our own in flight outranks
        an opening elsewhere; an opening of ours within the last second outranks a recovery elsewhere.
        """
        if remote.state == "closed":
            if self.state == "closed" or (self.state == "open" and now < self._since + HEAD_START_S):
                return False
            self._close()
            return True
        if remote.state == "half-open" or self._probing:
            return False
        if self.state != "closed" and remote.doublings <= self._doublings:
            return False  # this opening is known here already, or it is an older one
        previous = self.state
        self._open(now, remote.doublings)
        self._until = now + max(0.0, remote.remaining_s) + HEAD_START_S
        return previous != "open"

    def update(self, failure_threshold: int, reset_timeout_s: float, now: float) -> None:
        """New settings, in force at once: an open breaker stays open no longer than they allow."""
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
