"""How long does a draining instance take requests, and when is a request that is still in flight aborted?

It takes requests of its own sessions while they keep arriving: one within half the request timeout, and at most until the
request timeout after draining began. Without session affinity, or with no recent session, it refuses requests as soon as
the gateways have had time to learn of it. A request without a response gets the request timeout, a stream continues, and
everything ends after the drain timeout.
Not for requests that an instance refuses because it is full (policies/wait_queue.py).
Source: Envoy's drain sequence, HAProxy's `drain` state (persistent sessions still reach the server).
"""

from __future__ import annotations

from dataclasses import dataclass

SETTLE_S = 1.0  # from the start of draining: time for every gateway to learn of it


@dataclass(frozen=True)
class DrainTerms:
    """How an instance drains: its agent's settings, and whether another instance will take over its sessions."""

    request_timeout_s: float = 60.0
    drain_timeout_s: float = 600.0
    keep_sessions: bool = True


class Drain:
    """The draining of one instance. Times in seconds, `began` on the same clock as `now`."""

    def __init__(self, terms: DrainTerms, began: float) -> None:
        self.terms, self.began = terms, began

    def __repr__(self) -> str:
        sessions = "for its sessions" if self.terms.keep_sessions else "for nobody"
        return f"<Drain since {self.began:g}, waits {sessions}, ends at {self.ends_at:g}>"

    @property
    def ends_at(self) -> float:
        """Requests in flight at that time are aborted."""
        return self.began + self.terms.drain_timeout_s

    def takes_requests(self, now: float, session_at: float | None) -> bool:
        """`session_at`: when a request of a session last arrived; None: never."""
        if now < self.began + SETTLE_S:
            return True
        if not self.terms.keep_sessions or session_at is None:
            return False
        deadline = min(self.began + self.terms.request_timeout_s, self.ends_at)
        return now < min(deadline, session_at + self.terms.request_timeout_s / 2)

    def is_overdue(self, now: float, arrived: float, answering: bool) -> bool:
        """Whether to abort a request that arrived at `arrived`; `answering`: its first byte has been sent."""
        if now >= self.ends_at:
            return True
        return not answering and now >= max(self.began, arrived) + self.terms.request_timeout_s
