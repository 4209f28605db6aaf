"""The wall clock is stepped, as by an operator, or by NTP after a start with a wrong clock. It is set right again later."""

from __future__ import annotations

import random
import time

from tests.campaign.cluster import HEAD, REGIONS
from tests.campaign.record import Fault
from tests.campaign.stage import Skipped, Stage

STEPS_S = (3600.0, -3600.0, 60.0, -60.0, 5.0, -5.0)
EVERYWHERE = "everywhere"


def clock_step(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """Everywhere, or on the host of one region alone."""
    seconds, where, lasts_s = chance.choice(STEPS_S), chance.choice((EVERYWHERE, *REGIONS)), chance.uniform(5, 20)
    fault.what, fault.region = f"{seconds:+g} s", "" if where == EVERYWHERE else where
    clocks = stage.cluster.clocks
    if clocks is None:
        raise Skipped("the cluster's processes have no clock of their own")
    pids = None if where == EVERYWHERE else _processes(stage, where)
    fault.detail["processes"] = clocks.put_ahead(seconds, pids)
    if not fault.detail["processes"]:
        raise Skipped(f"no process with a clock of its own in {where}")
    fault.struck = time.monotonic()
    try:
        stage.over.wait(lasts_s)
    finally:
        clocks.put_ahead(0.0, pids)


def _processes(stage: Stage, region: str) -> list[int]:
    """Those of SwiftClaw on the region's host."""
    pids = [row.pid for row in stage.sampler.latest if row.region == region]
    return [*pids, *stage.cluster.gateways(), stage.controller()] if region == HEAD else pids
