"""response-time: which instance would finish first?

The lowest (load + 1) * slowness / weight. `slowness` compares an instance with the fleet at the same load
(policies/load/slowness.py), so that being busy is not mistaken for being slow; a new instance has 1. Use it when
instances differ in speed, or one may freeze or fail fast. Not needed where all are alike: there it equals
least-connections. Never route on a plain mean of times: it herds and ignores requests that are still running.
Source: shortest expected delay with measured speeds; the idea of comparing at equal load is Prequal's (NSDI 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from policies.base import Instance, Options, Request
from policies.strategies.cheapest import cheapest


class ResponseTime:
    __slots__ = ("_rng",)

    def __init__(self, rng: Random, options: Options | None = None) -> None:
        self._rng = rng

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        return cheapest(instances, cost, self._rng)


def cost(instance: Instance) -> float:
    return (instance.load + 1) * instance.slowness / instance.weight
