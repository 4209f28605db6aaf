"""One failover test: warm up, take the instance out, wait until it is back, all under probe traffic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.instance_state import HEALTHY
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.failover.probes import Probe, Probes

WARM_UP_S = 2.0
POLL_S = 0.2
AFTERWARDS_S = 1.0  # how long the traffic continues when the instance is back
MOST_RECENT = 2000  # probes to look through for an answer of the instance
BACK_WITHIN_S = 60.0  # after its process has ended, or after it stopped being unhealthy
DRAIN_WITHIN_S = 660.0  # for its requests in flight: a minute more than the default drainTimeout

Row = Mapping[str, Any]  # an instance as the admin port shows it


@dataclass(frozen=True)
class TrialPlan:
    """What to test; `row` is the instance before the test."""

    agent: str
    mode: str  # kill | drain | unhealthy
    duration_s: float
    rate: float  # probe requests per second
    others: int  # healthy instances besides this one
    has_share: bool  # whether the instance should receive requests
    row: Row

    @property
    def instance(self) -> str:
        return str(self.row["id"])


@dataclass(frozen=True)
class TrialResult:
    """The plan and its course. Times in seconds since the call that took the instance out began."""

    agent: str
    instance: str
    mode: str
    duration_s: float
    rate: float
    others: int
    confirmed_s: float  # when that call returned
    left_s: float | None  # when its process had ended, or it was allowed to be healthy again; None: still draining
    back_from_s: float | None  # its answers to requests begun later than this prove that it is back; None: it is not
    ready_s: float | None  # when the admin port showed it healthy again
    serves: bool  # whether it should receive requests again: not with weight 0


class TrialRun:
    """Runs a plan once. `rows` (reads the instances) and `take_out` may block: they are called in threads."""

    def __init__(
        self,
        plan: TrialPlan,
        addresses: list[str],
        rows: Callable[[], Sequence[Row]],
        take_out: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._plan, self._rows, self._take_out, self._report = plan, rows, take_out, report
        self._probes = Probes(addresses, plan.agent, plan.rate)
        # The fields of TrialResult, on the monotonic clock.
        self._taken_out = self._confirmed = 0.0
        self._left: float | None = None
        self._back_from: float | None = None
        self._ready: float | None = None

    async def __call__(self) -> tuple[TrialResult, list[Probe]]:
        """Raises CommandFailed when the agent does not answer even before, or the instance cannot be taken out."""
        stop = asyncio.Event()
        traffic = asyncio.create_task(self._probes.run(stop))
        try:
            await self._course()
            stop.set()
            self._report("waiting for the last answers")
            await traffic
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)
        return self._result(), [probe.since(self._taken_out) for probe in self._probes.sent]

    async def _course(self) -> None:
        plan = self._plan
        self._report(f"warming up: {plan.rate:g} requests/s for {WARM_UP_S:g} s")
        await asyncio.sleep(WARM_UP_S)
        self._check_answers()
        self._report(f"taking {plan.instance} out of service: {plan.mode}")
        self._taken_out = time.monotonic()
        await asyncio.to_thread(self._take_out)
        self._confirmed = time.monotonic()
        if plan.mode == "kill":
            self._left = self._taken_out
        elif plan.mode == "unhealthy":
            self._left = self._back_from = self._taken_out + plan.duration_s
        ends = self._taken_out + plan.duration_s
        while (now := time.monotonic()) < self._latest() and not (now >= ends and self._is_back()):
            self._report(self._situation())
            await self._observe()
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(AFTERWARDS_S)

    def _check_answers(self) -> None:
        """Raises CommandFailed when the warm-up got no answer: the test would prove nothing."""
        if any(probe.ok for probe in self._probes.sent):
            return
        errors = (f"{probe.error}: {probe.message}" for probe in self._probes.sent)
        reason = next(errors, f"no reply within {WARM_UP_S:g} s")
        raise CommandFailed(
            f"{self._plan.agent} does not answer even before {self._plan.instance} is taken out of service ({reason})"
        )

    def _latest(self) -> float:
        """When to give up."""
        due = self._taken_out + DRAIN_WITHIN_S if self._left is None else self._left + BACK_WITHIN_S
        return max(due, self._taken_out + self._plan.duration_s)

    def _situation(self) -> str:
        instance = self._plan.instance
        if self._left is None:
            return f"{instance} is finishing its requests"
        return f"{instance} is out of service" if self._ready is None else f"{instance} is healthy again"

    async def _observe(self) -> None:
        """Look at the instance on the admin port. While the Controller is unreachable, nothing is learned."""
        if self._ready is not None:
            return
        try:
            rows = await asyncio.to_thread(self._rows)
        except AdminUnreachable:
            return
        now, process_before = time.monotonic(), _process(self._plan.row)
        row = next((row for row in rows if row["id"] == self._plan.instance), None)
        if self._left is None and (row is None or _process(row) != process_before):
            self._left = now
        if row is None or row["state"] != HEALTHY:
            return
        if self._plan.mode == "unhealthy":
            self._ready = now if self._left is not None and now >= self._left else None
        elif _process(row) != process_before:
            self._back_from, self._ready = now - row["uptime_s"], now

    def _is_back(self) -> bool:
        if self._ready is None or self._back_from is None:
            return False
        return not self._serves() or any(
            probe.ok and probe.instance == self._plan.instance and probe.began_s >= self._back_from
            for probe in self._probes.sent[-MOST_RECENT:]
        )

    def _serves(self) -> bool:
        """Whether it received requests before, or should have: not with weight 0."""
        before = (probe for probe in self._probes.sent if probe.began_s < self._taken_out)
        return self._plan.has_share or any(probe.instance == self._plan.instance for probe in before)

    def _result(self) -> TrialResult:
        plan, start = self._plan, self._taken_out
        return TrialResult(
            agent=plan.agent,
            instance=plan.instance,
            mode=plan.mode,
            duration_s=plan.duration_s,
            rate=plan.rate,
            others=plan.others,
            confirmed_s=self._confirmed - start,
            left_s=None if self._left is None else self._left - start,
            back_from_s=None if self._back_from is None or self._ready is None else self._back_from - start,
            ready_s=None if self._ready is None else self._ready - start,
            serves=self._serves(),
        )


def _process(row: Row) -> tuple[object, object]:
    return row["node"], row["pid"]
