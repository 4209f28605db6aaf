"""Once a second, samples the cluster into the history, into events about rejected requests, and into Ray's own metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count

from cluster.fleet.event_recorder import EventRecorder
from cluster.telemetry.samples import InstanceSample, RefusalSample, WeightSample
from cluster.telemetry.totals import InstanceTotals
from cluster.view import ClusterView

log = logging.getLogger("swiftclaw.controller")

EVERY_S = 1.0
EXPORT_EVERY = 5  # samples; Ray itself reports its metrics every ten seconds
NO_TOTALS = InstanceTotals()


class Sampler:
    """Takes a sample at the beginning of every second, so that a second's slot holds one second of observations."""

    def __init__(
        self,
        view: ClusterView,
        recorder: EventRecorder,
        export: Callable[[ClusterView], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`export` passes the view on to Ray's metrics."""
        self._view, self._recorder, self._export = view, recorder, export
        self._clock, self._sleep = clock, sleep

    async def run_forever(self) -> None:
        for number in count():
            now = self._clock()
            begins = now - now % EVERY_S + EVERY_S
            await self._sleep(begins - now)
            try:
                # The loop may wake slightly early. Record under the intended second anyway, or that slot stays empty and
                # the previous one gets two samples.
                self._view.history.add(max(begins, self._clock()), samples(self._view))
                record_counts(self._view, self._recorder, time.monotonic())
                if number % EXPORT_EVERY == 0:
                    self._export(self._view)
            except Exception:  # the next second tries again
                log.exception("could not take the sample of this second; the metric history has a gap")


def record_counts(view: ClusterView, recorder: EventRecorder, now: float) -> None:
    """Record as events that requests are being rejected, or no longer are, and that sessions have moved.

    `now` is in monotonic seconds.
    """
    for agent in view.settings.agents:
        recorder.limit(agent, "rate-limited", view.totals.rate_limited(agent), now)
        rejected = view.totals.refusals.get((agent, 503), 0)
        recorder.limit(agent, "rejected (no capacity or no healthy instance)", rejected, now)
    for (agent, cause), total in view.totals.moved_sessions.items():
        recorder.sessions_moved(agent, cause, total, now)


def samples(view: ClusterView) -> Iterator[InstanceSample | RefusalSample | WeightSample]:
    """The current state of every instance, and the refusals and traffic shares of every agent."""
    totals = view.totals
    for record in view.registry:
        counts = totals.instances.get(record.key, NO_TOTALS)
        yield InstanceSample(
            record.key, counts.requests, counts.errors, counts.duration_sum_s, counts.durations,
            record.in_flight, record.cpu_percent,
        )  # fmt: skip
    for agent in view.settings.agents:
        limited = totals.rate_limited(agent)
        yield RefusalSample(agent, totals.refused(agent) - limited, limited, totals.queued(agent))
    for agent, version, percent in view.weights():
        if version:
            yield WeightSample(agent, version, percent)
