"""The circuit breakers of one agent's instances at one gateway: outcomes, probes, and what other gateways report.

All sync; `policies.breaker` has the rules. A failure is a connection error, a broken response, a 5xx, or a request whose
response has not started after `timeout_s`. The last kind is counted while the request still runs (`overdue`), so that a
frozen instance is out of service after that time and not only after the request's own timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cluster.config import CircuitBreaker
from cluster.messages import BreakerReport
from deployments.balancing.backend import Backend
from policies.breaker import Breaker, BreakerUpdate


class Breakers:
    """`changed` counts the changes of which instances may be asked; `opened` is called with those whose breaker opens."""

    def __init__(self, opened: Callable[[Backend], None]) -> None:
        self.changed = 0
        self._opened = opened
        self._settings = CircuitBreaker()
        self._timeout_s = 60.0
        self._tripped: dict[str, Backend] = {}  # by replica: instances whose breaker is not closed
        self._unreported: dict[str, Backend] = {}  # by replica: changes that the next observation will report
        self._merged: dict[str, int] = {}  # by replica: the number of the newest remote report that was merged

    def configure(self, settings: CircuitBreaker, request_timeout_s: float, backends: Iterable[Backend], now: float) -> None:
        """Apply settings and a new list of instances; the breakers of instances that stay keep their state."""
        self._settings = settings
        self._timeout_s = settings.timeout_s or request_timeout_s
        current = {}
        for backend in backends:
            current[backend.member.replica] = backend
            if not settings.enabled:
                backend.breaker = None
            elif backend.breaker is None:
                backend.breaker = Breaker(settings.failure_threshold, settings.reset_timeout_s)
            else:
                backend.breaker.update(settings.failure_threshold, settings.reset_timeout_s, now)
            backend.instance.healthy = backend.passes_checks and backend.breaker_allows(now)
        for held in (self._tripped, self._unreported):
            for replica in [replica for replica in held if replica not in current or current[replica].breaker is None]:
                del held[replica]
        self._merged = {replica: number for replica, number in self._merged.items() if replica in current}
        self.changed += 1

    def sent(self, backend: Backend, now: float) -> int | None:
        """The generation that this request's outcome will belong to; None: no breaker wants it."""
        breaker = backend.breaker
        if breaker is None:
            return None
        if breaker.state != "closed":
            before = breaker.state
            if not breaker.allow(now):
                return None
            backend.instance.healthy = False  # one probe is enough
            self.changed += 1
            if before == "open":
                self._unreported[backend.member.replica] = backend
        return breaker.generation

    def judge(self, backend: Backend, ok: bool | None, now: float, generation: int) -> None:
        """Record the outcome of one request; `ok` None: neither a success nor a failure."""
        breaker = backend.breaker
        if breaker is None:
            return
        if ok is None:
            breaker.abandon(generation)
        elif breaker.record(ok, now, generation):
            self._unreported[backend.member.replica] = backend
        if breaker.state != "closed" or backend.member.replica in self._tripped:
            self._note(backend, now)

    def overdue(self, backends: Iterable[Backend], now: float) -> None:
        """Count requests whose response has not started in time as failures, even while they still run.

        Once the breaker is open, overdue requests that may move to another instance do.
        """
        for backend in backends:
            while backend.awaiting:
                oldest = next(iter(backend.awaiting))
                if oldest.started_at + self._timeout_s > now:
                    break
                oldest.mark_overdue(now)
            if backend.overdue and backend.breaker is not None and backend.breaker.state != "closed":
                for lease in list(backend.overdue):
                    if lease.move_elsewhere is not None and lease.move_elsewhere():
                        del backend.overdue[lease]

    def postpone(self, backends: Iterable[Backend], seconds: float, now: float) -> None:
        """Give every instance this much longer to answer: this gateway has paused, and could not have read an answer."""
        for backend in backends:
            for lease in backend.awaiting:
                lease.started_at = min(lease.started_at + seconds, now)

    def refresh(self, now: float) -> None:
        """Let instances be probed whose reset timeout has passed."""
        if not self._tripped:
            return
        for backend in list(self._tripped.values()):
            if not backend.instance.healthy and backend.passes_checks and backend.breaker_allows(now):
                self._note(backend, now)

    def merge_remote(
        self, reports: Mapping[str, BreakerReport], gateway: str, backends: Mapping[str, Backend], now: float
    ) -> None:
        """Apply what other gateways report, by replica; `gateway` is this one."""
        for replica, report in reports.items():
            backend = backends.get(replica)
            if backend is None or backend.breaker is None or self._merged.get(replica, 0) >= report.number:
                continue
            self._merged[replica] = report.number
            if report.gateway != gateway and backend.breaker.merge_remote(report.news, now):
                self._note(backend, now)

    def resend_all(self) -> None:
        """Report every breaker that is not closed again: the Controller has restarted and knows none of them."""
        self._merged.clear()
        self._unreported.update(self._tripped)

    @property
    def has_updates(self) -> bool:
        return bool(self._unreported)

    def take_updates(self, now: float) -> dict[str, BreakerUpdate]:
        """By replica: the breakers that have changed here since the last call."""
        changed, self._unreported = self._unreported, {}
        return {replica: backend.breaker.report(now) for replica, backend in changed.items() if backend.breaker is not None}

    def wait_s(self, backends: Iterable[Backend], now: float) -> float | None:
        """Seconds until the first of these may be probed; None if no breaker of theirs refuses requests."""
        waits = [
            backend.breaker.retry_after_s(now) for backend in backends if backend.breaker and not backend.breaker_allows(now)
        ]
        return min(waits) if waits else None

    def _note(self, backend: Backend, now: float) -> None:
        """Bring the flags that the choice reads up to date, after a breaker has changed."""
        if backend.breaker is None or backend.breaker.state == "closed":
            self._tripped.pop(backend.member.replica, None)
        else:
            self._tripped[backend.member.replica] = backend
            if backend.breaker.state == "open":
                self._opened(backend)
        backend.instance.healthy = backend.passes_checks and backend.breaker_allows(now)
        self.changed += 1
