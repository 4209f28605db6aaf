"""Which of these instances costs least?

The one loop behind least-connections and response-time: it looks at every instance once and breaks ties at
random, each with the same chance. Above `FULL_SCAN` instances it looks at a random draw of that many instead: its
best is in the best few percent of any fleet, and gateways with the same view do not all pick the same instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from random import Random

from policies.base import Instance
from policies.candidates import LARGE, Candidates

FULL_SCAN = LARGE


def cheapest(instances: Sequence[Instance], cost: Callable[[Instance], float], rng: Random) -> Instance | None:
    """The instance with the lowest cost among those whose weight is not 0; None when there is none."""
    if isinstance(instances, Candidates):
        return _scan(instances.draw(rng, FULL_SCAN), cost, rng) or _scan(instances, cost, rng)
    if len(instances) <= FULL_SCAN:
        return _scan(instances, cost, rng)
    return _scan(rng.choices(instances, k=FULL_SCAN), cost, rng) or _scan(instances, cost, rng)


def _scan(instances: Sequence[Instance], cost: Callable[[Instance], float], rng: Random) -> Instance | None:
    best: Instance | None = None
    lowest = inf
    ties = 1
    for instance in instances:
        if instance.weight <= 0:
            continue
        value = cost(instance)
        if value < lowest:
            best, lowest, ties = instance, value, 1
        elif value == lowest:
            ties += 1
            if rng.random() * ties < 1:
                best = instance
    return best
