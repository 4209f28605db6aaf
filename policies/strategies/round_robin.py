"""round-robin: which instance's turn is it?

Smooth weighted round-robin over `Instance.weight` (policies/weighted.py); in a large fleet, earliest deadline first (edf.py).
With equal weights every N picks in a row reach each of N instances once; with weights each gets exactly its share of a
period. Use it when instances and requests are alike, or when weights must be exact shares. Not for agents, whose turns last
from milliseconds to minutes: it keeps sending to an instance that is busy or slow (least-connections, response-time).
Source: NGINX, upstream round robin module.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from policies.base import Instance, Options, Request
from policies.candidates import Candidates
from policies.strategies.edf import EdfScheduler
from policies.weighted import SmoothWeighted

MAX_NAMES = 8192  # names are reused, so this bound should never be reached


class RoundRobin:
    __slots__ = ("_all_weights", "_by_id", "_ids", "_instances", "_scheduler", "_turns", "_weights")

    def __init__(self, rng: Random, options: Options | None = None) -> None:
        self._turns = SmoothWeighted({}, rng)
        self._scheduler = EdfScheduler(rng)
        self._all_weights: dict[str, float] = {}  # weights, also of instances that are not eligible now
        self._by_id: dict[str, Instance] = {}
        self._instances: list[Instance] = []
        self._weights: list[float] = []
        self._ids: list[str] = []

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if isinstance(instances, Candidates):
            return self._scheduler.pick(instances)
        weights = [instance.weight for instance in instances]
        if weights != self._weights or list(instances) != self._instances:
            self._sync(instances, weights)
        winner = self._turns.pick(self._ids)
        return None if winner is None else self._by_id[winner]

    def _sync(self, instances: Sequence[Instance], weights: list[float]) -> None:
        self._instances, self._weights = list(instances), weights
        self._ids = [instance.id for instance in instances]
        self._by_id = dict(zip(self._ids, instances, strict=True))
        current = dict(zip(self._ids, weights, strict=True))
        if not current.items() <= self._all_weights.items():
            kept = self._all_weights if len(self._all_weights) < MAX_NAMES else {}
            self._all_weights = kept | dict(sorted(current.items()))  # sorted: the order of the input must not matter
            self._turns.update(self._all_weights)
