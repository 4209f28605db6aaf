"""The course of a failover test: warm up, take the instance away, go on, wait until it is back. All under probe traffic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.failover.probes import Probe, Probes
from swiftclaw.cli.failover.report import BACK_WITHIN_S, DRAIN_WITHIN_S, Trial

WARM_UP_S = 2.0
LOOK_EVERY_S = 0.2
AFTERWARDS_S = 1.0  # it goes on for this long once the instance is back
MOST_RECENT = 2000  # probes to look through

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrialPlan:
    """What is to be tested, and the instance's row before it."""

    agent: str
    mode: str
    duration_s: float
    rate: float
    others: int
    has_share: bool
    row: Row

    @property
    def instance(self) -> str:
        return str(self.row["id"])


class TrialRun:
    """One trial. `rows` and `take` may block: they are called in threads. `say` is told what is being done."""

    def __init__(
        self,
        order: TrialPlan,
        addresses: list[str],
        rows: Callable[[], Sequence[Row]],
        take: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._order, self._rows, self._take, self._say = order, rows, take, say
        self._probes = Probes(addresses, order.agent, order.rate)
        self._taken = self._known = 0.0  # on the monotonic clock
        self._left: float | None = None  # its process has ended, or it may be healthy again
        self._back_from: float | None = None
        self._ready: float | None = None

    async def __call__(self) -> tuple[Trial, list[Probe]]:
        """Raises CommandFailed when the agent does not answer even before, or the instance cannot be taken away."""
        enough = asyncio.Event()
        traffic = asyncio.create_task(self._probes.run(enough))
        try:
            await self._course()
            enough.set()
            self._say("waiting for the last answers")
            await traffic
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)
        return self._trial(), [probe.since(self._taken) for probe in self._probes.sent]

    async def _course(self) -> None:
        order = self._order
        self._say(f"warming up: {order.rate:g} requests/s for {WARM_UP_S:g} s")
        await asyncio.sleep(WARM_UP_S)
        if not any(probe.ok for probe in self._probes.sent):
            why = next((f"{probe.error}: {probe.message}" for probe in self._probes.sent), f"nothing within {WARM_UP_S:g} s")
            raise CommandFailed(f"{order.agent} answers no request even with {order.instance} there ({why})")
        self._say(f"taking {order.instance} away: {order.mode}")
        self._taken = time.monotonic()
        await asyncio.to_thread(self._take)
        self._known = time.monotonic()
        if order.mode == "kill":
            self._left = self._taken
        elif order.mode == "unhealthy":
            self._left = self._back_from = self._taken + order.duration_s
        ends = self._taken + order.duration_s
        while (now := time.monotonic()) < self._latest() and not (now >= ends and self._is_back()):
            self._say(self._situation())
            await self._look()
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(AFTERWARDS_S)

    def _latest(self) -> float:
        """When to give up."""
        due = self._taken + DRAIN_WITHIN_S if self._left is None else self._left + BACK_WITHIN_S
        return max(due, self._taken + self._order.duration_s)

    def _situation(self) -> str:
        if self._left is None:
            return f"{self._order.instance} finishes its requests"
        return f"{self._order.instance} is away" if self._ready is None else f"{self._order.instance} is healthy again"

    async def _look(self) -> None:
        """What the admin port says of it. A Controller that is away for a moment says nothing."""
        if self._ready is not None:
            return
        try:
            rows = await asyncio.to_thread(self._rows)
        except AdminUnreachable:
            return
        now, before = time.monotonic(), _process(self._order.row)
        row = next((row for row in rows if row["id"] == self._order.instance), None)
        if self._left is None and (row is None or _process(row) != before):
            self._left = now
        if row is None or row["state"] != "healthy":
            return
        if self._order.mode == "unhealthy":
            self._ready = now if self._left is not None and now >= self._left else None
        elif _process(row) != before:
            self._back_from, self._ready = now - row["uptime_s"], now

    def _is_back(self) -> bool:
        if self._ready is None or self._back_from is None:
            return False
        return not self._serves() or any(
            probe.ok and probe.instance == self._order.instance and probe.began_s >= self._back_from
            for probe in self._probes.sent[-MOST_RECENT:]
        )

    def _serves(self) -> bool:
        """Whether it got requests, or should have: not with weight 0."""
        before = (probe for probe in self._probes.sent if probe.began_s < self._taken)
        return self._order.has_share or any(probe.instance == self._order.instance for probe in before)

    def _trial(self) -> Trial:
        order = self._order
        return Trial(
            agent=order.agent,
            instance=order.instance,
            mode=order.mode,
            duration_s=order.duration_s,
            rate=order.rate,
            others=order.others,
            known_s=self._known - self._taken,
            left_s=None if self._left is None else self._left - self._taken,
            back_from_s=None if self._back_from is None or self._ready is None else self._back_from - self._taken,
            ready_s=None if self._ready is None else self._ready - self._taken,
            serves=self._serves(),
        )


def _process(row: Row) -> tuple[object, object]:
    return row["node"], row["pid"]
