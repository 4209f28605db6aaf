"""The network between the head's region, with the Controller and the gateways, and another: cut or slow for some seconds.

Only in a run with a host per region (hosts.py).
"""

from __future__ import annotations

import random
import time

from tests.campaign.cluster import HEAD, REGIONS
from tests.campaign.record import Fault
from tests.campaign.stage import Skipped, Stage
from tests.integration.network import CLEAR, LOST, Network, Way


def cut_region(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """No packet gets through, neither way."""
    fault.region, fault.what = chance.choice(REGIONS[1:]), "both ways"
    _shape(stage, fault, [(HEAD, fault.region), (fault.region, HEAD)], LOST, chance.uniform(3, 10))


def one_way(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """Requests get through and answers do not, or the other way round."""
    fault.region = chance.choice(REGIONS[1:])
    fault.what, pair = chance.choice((("to it", (HEAD, fault.region)), ("from it", (fault.region, HEAD))))
    _shape(stage, fault, [pair], LOST, chance.uniform(3, 10))


def delay_region(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """Every packet is late, each by another time."""
    fault.region, ms = chance.choice(REGIONS[1:]), chance.uniform(100, 400)
    fault.what = f"{ms:.0f} ms"
    way = Way(delay_ms=ms / 2, jitter_ms=ms / 8)
    _shape(stage, fault, [(HEAD, fault.region), (fault.region, HEAD)], way, chance.uniform(5, 12))


def _shape(stage: Stage, fault: Fault, pairs: list[tuple[str, str]], way: Way, seconds: float) -> None:
    network: Network | None = stage.cluster.network
    if network is None:
        raise Skipped("all regions are on one host (--network gives each a host of its own)")
    try:
        for source, target in pairs:
            network.shape(source, target, way)
        fault.struck = time.monotonic()
        stage.over.wait(seconds)
    finally:
        for source, target in pairs:
            network.shape(source, target, CLEAR)
