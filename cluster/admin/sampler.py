"""Once a second, what the gateways and instances said goes into the history and into Ray's own metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from cluster.admin.live import refusals_of, weight_of
from cluster.admin.ray_metrics import RayMetrics
from cluster.telemetry.history import InstanceSample
from cluster.telemetry.tally import BUCKETS_S
from cluster.telemetry.totals import InstanceTotals

if TYPE_CHECKING:
    from cluster.controller import Controller

log = logging.getLogger("swiftclaw.controller")

EVERY_S = 1.0
RAY_EVERY = 5  # Ray itself hands its metrics on every ten seconds
NOTHING = InstanceTotals()
ZEROS = (0,) * (len(BUCKETS_S) + 1)  # how long refusals took is not known


async def sample_forever(controller: Controller) -> None:
    """On the beginning of every second, so that a second's slot is one second of observations."""
    ray_metrics = RayMetrics()
    for second in count():
        now = time.time()
        begins = now - now % EVERY_S + EVERY_S
        await asyncio.sleep(begins - now)
        try:
            # Woken a moment too early it is that second all the same: else it would have no sample, and the one before two.
            controller.history.add(max(begins, time.time()), samples(controller))
            witness_limits(controller)
            if second % RAY_EVERY == 0:
                ray_metrics.tell(controller.ledger, controller)
        except Exception:  # the next second tries again
            log.exception("the history misses a second")


def witness_limits(controller: Controller) -> None:
    """What users were refused, as events."""
    ledger, now = controller.ledger, time.monotonic()
    for agent in controller.settings.agents:
        controller.witness.limit(agent, "rate-limited", ledger.rate_limited(agent), now)
        controller.witness.limit(
            agent, "refused for want of room or of somebody well", ledger.refusals.get((agent, 503), 0), now
        )


def samples(controller: Controller) -> Iterator[InstanceSample]:
    """Every instance, and for every agent what no instance got."""
    ledger = controller.ledger
    for record in controller.registry:
        totals = ledger.totals.get(record.key, NOTHING)
        yield InstanceSample(
            record.key, totals.requests, totals.errors, totals.duration_sum_s, totals.durations,
            record.in_flight, record.cpu_percent,
        )  # fmt: skip
    for agent in controller.settings.agents:
        limited = ledger.rate_limited(agent)
        yield InstanceSample(refusals_of(agent), ledger.refused(agent) - limited, limited, 0.0, ZEROS, ledger.queued(agent))
    for agent, version, percent in controller.weights():
        if version:
            yield InstanceSample(weight_of(agent, version), 0, 0, 0.0, (), round(percent))
