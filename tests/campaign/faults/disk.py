"""The disk of the state folder: it cannot be written, or takes seconds to be. What runs is not to feel it."""

from __future__ import annotations

import random
import time

from tests.campaign.disk import FROZEN, FULL, IMMUTABLE, READ_ONLY, Disk
from tests.campaign.record import Fault
from tests.campaign.stage import Skipped, Stage


def unwritable_state(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """Full, read-only, or immutable."""
    fault.what, seconds = chance.choice((FULL, READ_ONLY, IMMUTABLE)), chance.uniform(8, 18)
    disk = _disk(stage, fault.what)
    state = {FULL: disk.full, READ_ONLY: disk.read_only, IMMUTABLE: disk.immutable}[fault.what]
    with state():
        fault.struck = time.monotonic()
        stage.over.wait(seconds)


def hanging_state(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """No write returns for some seconds."""
    fault.what, seconds = "hangs", chance.uniform(3, 7)
    _disk(stage, FROZEN).freeze(stage.over, lambda: _strike(fault), seconds)


def slow_state(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """Most writes take a part of a second, for some seconds."""
    fault.what, held, free = "slow", chance.uniform(0.3, 0.9), chance.uniform(0.1, 0.3)
    times = round(chance.uniform(6, 14) / (held + free))
    _disk(stage, FROZEN).freeze(stage.over, lambda: _strike(fault), held, free, times)


def _strike(fault: Fault) -> None:
    fault.struck = time.monotonic()


def _disk(stage: Stage, state: str) -> Disk:
    disk = stage.cluster.disk
    if disk is None:
        raise Skipped("the state folder has no disk of its own")
    if why := disk.why_not(state):
        raise Skipped(why)
    return disk
