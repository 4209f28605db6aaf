"""Whose turn is it, among so many instances that a look at each costs too much?

Earliest deadline first: the instance with the lowest deadline has its turn, which puts its deadline off by 1 / weight. So each
gets its weight's share, and with equal weights N turns in a row reach each of N instances once; a turn costs log N. One that
cannot take its turn loses it. policies/weighted.py spreads a few names more evenly, at a cost that grows with their number.
Source: Envoy's EDF scheduler.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from random import Random

from policies.base import Instance
from policies.candidates import Candidates, Group

Turn = tuple[float, float, Instance]  # the deadline, a random number that decides between equal ones, the instance


class EdfScheduler:
    """The state of one strategy. Deadlines are kept by id while the group changes around them."""

    __slots__ = ("_group", "_heap", "_now", "_rng")

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._group: Group | None = None
        self._heap: list[Turn] = []
        self._now = 0.0  # the deadline of the newest turn

    def __repr__(self) -> str:
        return f"<EdfScheduler of {len(self._heap)} instances>"

    def pick(self, candidates: Candidates) -> Instance | None:
        """The first in turn that may be used and whose weight is not 0; None when there is none."""
        if candidates.group is not self._group:
            self._sync(candidates.group)
        heap, may, chosen = self._heap, candidates.may, None
        seen: list[Turn] = []  # each once, however small its steps are
        while heap and chosen is None:
            deadline, tie, instance = heappop(heap)
            weight = instance.weight
            seen.append((deadline + (1 / weight if weight > 0 else 1.0), tie, instance))
            if weight > 0 and may(instance):
                self._now, chosen = deadline, instance
        for turn in seen:
            heappush(heap, turn)
        return chosen

    def _sync(self, group: Group) -> None:
        """Who stays keeps its turn; who is new, or was away for longer than a round, joins somewhere in the round."""
        known = {instance.id: (deadline, tie) for deadline, tie, instance in self._heap}
        self._group, now, random = group, self._now, self._rng.random
        self._heap = []
        for instance in group.members:
            deadline, tie = known.get(instance.id, (-1.0, 0.0))
            if deadline < now or not tie:
                deadline, tie = now + random() / max(instance.weight, 1e-6), 1 + random()
            self._heap.append((deadline, tie, instance))
        heapify(self._heap)
