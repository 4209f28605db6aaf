"""What the gateways say of their breakers, put together: the newest word on each instance is what all of them hear.

Sync and without a clock. The Controller judges nothing here: a gateway trips by what it saw, tells within a second, and
the others adopt it by the rules of `policies.breaker`. A restarted Controller knows nothing and is told again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cluster.messages import BreakerReport
from policies.breaker import BreakerUpdate, State


class SharedBreakers:
    """By replica. One that nothing was said of is closed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[BreakerReport, float]] = {}  # and when it was heard
        self._number = 0

    def hear(self, gateway: str, told: Mapping[str, BreakerUpdate], now: float) -> dict[str, tuple[State, State]]:
        """By replica: (what it was, what it is) for each that has changed."""
        changes = {}
        for replica, news in told.items():
            before = self.state(replica, now)
            self._number += 1
            self._known[replica] = (BreakerReport(self._number, gateway, news), now)
            if before != news.state:
                changes[replica] = (before, news.state)
        return changes

    def state(self, replica: str, now: float) -> State:
        """An open one whose time has passed is half-open: the next request is its probe."""
        known = self._known.get(replica)
        if known is None:
            return "closed"
        news = known[0].news
        return "half-open" if news.state == "open" and news.remaining_s <= now - known[1] else news.state

    def all_tripped(self, replicas: Collection[str], now: float) -> bool:
        """Whether none of them is closed, and there is one."""
        return bool(replicas) and all(self.state(replica, now) != "closed" for replica in replicas)

    def to_tell(self, now: float) -> dict[str, BreakerReport]:
        """For a snapshot: times are as of `now`."""
        return {
            replica: circuit
            if circuit.news.state != "open"
            else circuit._replace(news=circuit.news._replace(remaining_s=max(0.0, circuit.news.remaining_s - (now - heard))))
            for replica, (circuit, heard) in self._known.items()
        }

    def keep(self, replicas: Collection[str]) -> None:
        """The others are gone."""
        for replica in self._known.keys() - set(replicas):
            del self._known[replica]
