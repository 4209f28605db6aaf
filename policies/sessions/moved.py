"""How many sessions have lost their home, and why? Each move is counted once in the cluster.

Two gateways may move one session in the same moment; when they exchange homes, one of the two prevails at both
(policies/sessions/homes.py), and the gateway whose home was replaced withdraws its move. A move is therefore confirmed only
after CONFIRM_S, by the gateway that made it. Not a record of single sessions: only counts by cause leave. Pure.
"""

from __future__ import annotations

from math import inf
from typing import Literal, get_args

Cause = Literal["drained", "died", "unhealthy", "unresponsive", "unknown"]  # what became of the instance
CAUSES: tuple[Cause, ...] = get_args(Cause)

CONFIRM_S = 1.0  # homes are exchanged within a fraction of it


class MovedSessions:
    """The moves of one agent's sessions that one gateway has made."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Cause, float]] = {}  # session -> cause, time; oldest first
        self._confirmed: dict[Cause, int] = {}

    def __repr__(self) -> str:
        return f"<MovedSessions: {sum(self._confirmed.values())} confirmed, {len(self._made)} made>"

    def add(self, session: str, cause: Cause, now: float) -> None:
        """This gateway has moved the session to a new home."""
        self._confirm(session)
        self._made[session] = cause, now

    def withdraw(self, session: str) -> None:
        """Another gateway has made the same move, and its home prevails."""
        self._made.pop(session, None)

    def take(self, now: float = inf) -> dict[Cause, int]:
        """The moves by cause that were confirmed since the last call; by default all of them."""
        while self._made:
            session, (_, made_at) = next(iter(self._made.items()))
            if now - made_at < CONFIRM_S:
                break
            self._confirm(session)
        confirmed, self._confirmed = self._confirmed, {}
        return confirmed

    def _confirm(self, session: str) -> None:
        made = self._made.pop(session, None)
        if made is not None:
            self._confirmed[made[0]] = self._confirmed.get(made[0], 0) + 1
