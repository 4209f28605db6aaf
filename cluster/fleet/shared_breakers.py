"""The newest report of any gateway on each instance's circuit breaker: what all gateways receive with the next snapshot.

Sync and without a clock. The Controller judges nothing here: a gateway opens a breaker by what it counted, reports within a
second, and the others merge the report by the rules of `policies.breaker`. After a restart gateways report again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cluster.messages import BreakerReport
from policies.breaker import BreakerUpdate, State


class SharedBreakers:
    """By replica. A breaker without a report is closed."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[BreakerReport, float]] = {}  # and when it arrived
        self._number = 0

    def observe(self, gateway: str, updates: Mapping[str, BreakerUpdate], now: float) -> dict[str, tuple[State, State]]:
        """By replica: (state before, state after) of each breaker that has changed."""
        changes = {}
        for replica, update in updates.items():
            before = self.state(replica, now)
            self._number += 1
            self._reports[replica] = (BreakerReport(self._number, gateway, update), now)
            if before != update.state:
                changes[replica] = (before, update.state)
        return changes

    def state(self, replica: str, now: float) -> State:
        """An open breaker whose reset timeout is over is half-open: the next request is its probe."""
        if replica not in self._reports:
            return "closed"
        report, arrived = self._reports[replica]
        return "half-open" if report.news.state == "open" and report.news.remaining_s <= now - arrived else report.news.state

    def all_tripped(self, replicas: Collection[str], now: float) -> bool:
        """Whether there is at least one breaker and none of them is closed."""
        return bool(replicas) and all(self.state(replica, now) != "closed" for replica in replicas)

    def reports(self, now: float) -> dict[str, BreakerReport]:
        """For a snapshot: remaining times are as of `now`."""
        return {replica: _as_of(report, now - arrived) for replica, (report, arrived) in self._reports.items()}

    def keep(self, replicas: Collection[str]) -> None:
        """Forget all other replicas."""
        for replica in self._reports.keys() - set(replicas):
            del self._reports[replica]


def _as_of(report: BreakerReport, age_s: float) -> BreakerReport:
    if report.news.state != "open":
        return report
    return report._replace(news=report.news._replace(remaining_s=max(0.0, report.news.remaining_s - age_s)))
