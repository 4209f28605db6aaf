"""Until when does an instance that is to leave take requests, and when is one that it still works on cut off?

Two questions. It takes the requests of sessions that live there for as long as they come: while one was seen within half
the request timeout, at most until the deadline (the request timeout after it began to leave). Without session affinity,
or with no session lately, it refuses as soon as the gateways have had time to hear of it. A request without an answer
gets the request timeout, a stream goes on, everything ends after the drain timeout.
Not for requests that an instance refuses because it is full (policies/wait_queue.py).
Source: Envoy's drain sequence, HAProxy's `drain` state (persistent sessions still reach the server).
"""

from __future__ import annotations

from dataclasses import dataclass

SETTLE_S = 1.0  # after saying that it leaves: time for every gateway to hear of it


@dataclass(frozen=True)
class DrainTerms:
    """How an instance may leave: its agent's settings, and whether somebody will be there for its sessions."""

    request_timeout_s: float = 60.0
    drain_timeout_s: float = 600.0
    keep_sessions: bool = True


class Drain:
    """One instance's way out. Times in seconds, `began` on the same clock as `now`."""

    def __init__(self, terms: DrainTerms, began: float) -> None:
        self.terms, self.began = terms, began

    def __repr__(self) -> str:
        sessions = "for its sessions" if self.terms.keep_sessions else "for nobody"
        return f"<Drain since {self.began:g}, waits {sessions}, ends at {self.ends_at:g}>"

    @property
    def ends_at(self) -> float:
        """Whatever is in flight then is cut off."""
        return self.began + self.terms.drain_timeout_s

    def takes_requests(self, now: float, session_at: float | None) -> bool:
        """`session_at`: when a request of a session last came, None: never."""
        if now < self.began + SETTLE_S:
            return True
        if not self.terms.keep_sessions or session_at is None:
            return False
        deadline = min(self.began + self.terms.request_timeout_s, self.ends_at)
        return now < min(deadline, session_at + self.terms.request_timeout_s / 2)

    def is_overdue(self, now: float, arrived: float, answering: bool) -> bool:
        """Whether to cut off a request that came at `arrived`; `answering`: its first byte is out."""
        if now >= self.ends_at:
            return True
        return not answering and now >= max(self.began, arrived) + self.terms.request_timeout_s
