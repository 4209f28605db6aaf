"""The breakers of one agent's instances at one gateway: who trips, who may be asked again, what the others are told.

All sync; `policies.breaker` has the rules. A failure is a connection error, a broken answer, a 5xx, or a call that has
not begun to answer after `timeout_s`: such a one is counted while it still runs (`overdue`), so that an instance that
is frozen is out after that time and not after the request's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cluster.config import CircuitBreaker
from cluster.messages import BreakerReport
from deployments.balancing.backend import Backend
from policies.breaker import Breaker, BreakerUpdate


class Breakers:
    """`changed` counts every change of who may be asked. `opened` is told of an instance that is out."""

    def __init__(self, opened: Callable[[Backend], None]) -> None:
        self.changed = 0
        self._opened = opened
        self._settings = CircuitBreaker()
        self._timeout_s = 60.0
        self._tripped: dict[str, Backend] = {}  # by replica: those whose breaker is not closed
        self._untold: dict[str, Backend] = {}  # by replica: what the other gateways have yet to hear
        self._adopted: dict[str, int] = {}  # by replica: the last of the others' news that was looked at

    def configure(self, settings: CircuitBreaker, request_timeout_s: float, backends: Iterable[Backend], now: float) -> None:
        """New settings and a new list of instances; the state of those that stay is kept."""
        self._settings = settings
        self._timeout_s = settings.timeout_s or request_timeout_s
        here = {}
        for backend in backends:
            here[backend.member.replica] = backend
            if not settings.enabled:
                backend.breaker = None
            elif backend.breaker is None:
                backend.breaker = Breaker(settings.failure_threshold, settings.reset_timeout_s)
            else:
                backend.breaker.update(settings.failure_threshold, settings.reset_timeout_s, now)
            backend.instance.healthy = backend.passes_checks and backend.breaker_allows(now)
        for held in (self._tripped, self._untold):
            for replica in [replica for replica in held if replica not in here or here[replica].breaker is None]:
                del held[replica]
        self._adopted = {replica: number for replica, number in self._adopted.items() if replica in here}
        self.changed += 1

    def sent(self, backend: Backend, now: float) -> int | None:
        """The generation that this request's verdict will belong to; None: it has none to give."""
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
                self._untold[backend.member.replica] = backend
        return breaker.generation

    def judge(self, backend: Backend, ok: bool | None, now: float, generation: int) -> None:
        """One request's verdict; `ok` None: it has none."""
        breaker = backend.breaker
        if breaker is None:
            return
        if ok is None:
            breaker.abandon(generation)
        elif breaker.record(ok, now, generation):
            self._untold[backend.member.replica] = backend
        if breaker.state != "closed" or backend.member.replica in self._tripped:
            self._note(backend, now)

    def overdue(self, backends: Iterable[Backend], now: float) -> None:
        """Calls that have not begun to answer in time are failures, even while they go on.

        Once the breaker is open, those that may go to another instance do: nobody waits for one that has been given up.
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

    def refresh(self, now: float) -> None:
        """Those whose time has come may be probed."""
        if not self._tripped:
            return
        for backend in list(self._tripped.values()):
            if not backend.instance.healthy and backend.passes_checks and backend.breaker_allows(now):
                self._note(backend, now)

    def adopt(self, told: Mapping[str, BreakerReport], gateway: str, backends: Mapping[str, Backend], now: float) -> None:
        """What other gateways have found out, by replica."""
        for replica, circuit in told.items():
            backend = backends.get(replica)
            if backend is None or backend.breaker is None or self._adopted.get(replica, 0) >= circuit.number:
                continue
            self._adopted[replica] = circuit.number
            if circuit.gateway != gateway and backend.breaker.merge_remote(circuit.news, now):
                self._note(backend, now)

    def retell(self) -> None:
        """Whoever was told has forgotten: everything that is not closed is news again."""
        self._adopted.clear()
        self._untold.update(self._tripped)

    @property
    def untold(self) -> bool:
        return bool(self._untold)

    def news(self, now: float) -> dict[str, BreakerUpdate]:
        """By replica: what has changed here since the last call."""
        told, self._untold = self._untold, {}
        return {replica: backend.breaker.report(now) for replica, backend in told.items() if backend.breaker is not None}

    def wait_s(self, backends: Iterable[Backend], now: float) -> float | None:
        """Until the first of these may be probed; None: at least one of them may be asked already, or there is none."""
        waits = [
            backend.breaker.retry_after_s(now) for backend in backends if backend.breaker and not backend.breaker_allows(now)
        ]
        return min(waits) if waits else None

    def _note(self, backend: Backend, now: float) -> None:
        """The flags that the choice looks at, after the breaker has changed."""
        if backend.breaker is None or backend.breaker.state == "closed":
            self._tripped.pop(backend.member.replica, None)
        else:
            self._tripped[backend.member.replica] = backend
            if backend.breaker.state == "open":
                self._opened(backend)
        backend.instance.healthy = backend.passes_checks and backend.breaker_allows(now)
        self.changed += 1
