"""Whose turn is it, when some names get more turns than others?

Smooth weighted round-robin: in every period each name gets exactly its weight's share, spread as evenly as the
weights allow (5, 1, 1 gives a a b a c a a). Each pick adds its weight to every name's lag; the largest lag wins
and pays the sum. With equal weights the name that waited longest wins, so that N picks in a row reach
each of N once, whatever happened before. When the eligible names change, lags are kept as fractions of a pick: a
smaller set neither repays nor forgives debts in bursts. Not for unequal work per pick: it does not look at load.
Source: NGINX, upstream round robin module; the random phase of each gateway is from Envoy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from math import inf
from operator import add, truediv
from random import Random

PHASE_STEPS = 4096  # the most additions that finding a random phase may cost


def weights_of(named: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """A weight for each of `names`: its own, or the mean of `named`; 1 for all when `named` is empty."""
    mean = sum(named.values()) / len(named) if named else 1.0
    return {name: named.get(name, mean) for name in names}


class SmoothWeighted:
    """Picks among names by weight. `rng=None`: phase 0, ties go to the first in the order of `weights`."""

    __slots__ = (
        "_asked",
        "_even",
        "_lag",
        "_names",
        "_order",
        "_rank",
        "_rng",
        "_shares",
        "_standing",
        "_total",
        "_turn",
        "_weights",
    )

    def __init__(self, weights: Mapping[str, float], rng: Random | None = None) -> None:
        self._rng = rng
        self._weights: dict[str, float] = {}
        self._rank: dict[str, float] = {}  # the random order of ties
        self._order: list[str] = []  # every name that may ever be picked, in the order of ties
        self._even = True
        self._lag: dict[str, float] = {}  # uneven: picks owed to a name that is not in view
        self._turn: dict[str, float] = {}  # even: when a name that is not in view was last picked
        # The view: the names of the last question, aligned with their state; rebuilt when the names change.
        self._asked: list[str] = []
        self._names: list[str] = []
        self._shares: list[float] = []
        self._standing: list[float] = []  # lag in units of weight, or turn
        self._total = 0.0
        self.update(weights)

    def __repr__(self) -> str:
        kind = "even" if self._even else "weighted"
        return f"<SmoothWeighted {kind}, {len(self._names)} of {len(self._order)} names eligible>"

    def pick(self, ids: Iterable[str]) -> str | None:
        """One of `ids` whose weight is not 0, or None. Unknown names are never picked."""
        asked = list(ids)
        if asked != self._asked:
            self._open_view(asked)
        if not self._names:
            return None
        standing = self._standing
        if self._even:
            winner = standing.index(min(standing))
            standing[winner] = max(standing) + 1
        else:
            self._standing = standing = list(map(add, standing, self._shares))
            winner = standing.index(max(standing))
            standing[winner] -= self._total
        return self._names[winner]

    def update(self, weights: Mapping[str, float]) -> None:
        """Replaces the weights. Names that stay keep what they are owed; names that join are owed nothing."""
        self._close_view()
        self._weights = {name: weight for name, weight in weights.items() if 0 < weight < inf}
        self._order = list(self._weights)
        if self._rng is not None:
            self._rank = {name: self._rank.get(name) or self._rng.random() for name in self._order}
            self._order.sort(key=self._rank.__getitem__)
        even = len(set(self._weights.values())) <= 1
        fresh = even != self._even or not (self._lag.keys() | self._turn.keys()) & self._weights.keys()
        self._even = even
        self._turn = {} if fresh else {n: t for n, t in self._turn.items() if n in self._weights}
        self._lag = {} if fresh else {n: lag for n, lag in self._lag.items() if n in self._weights}
        if self._lag:
            drift = sum(self._lag.values()) / len(self._lag)  # removed names took their lags along
            self._lag = {n: lag - drift for n, lag in self._lag.items()}
        if fresh and not even and self._rng is not None:
            self._advance(self._rng)

    def _advance(self, rng: Random) -> None:
        """Starts somewhere within the period, so that gateways do not all open on the heaviest name."""
        values = self._weights.values()
        period = int(sum(values) / min(values))
        for _ in range(rng.randrange(1 + min(period, PHASE_STEPS // len(values)))):
            self.pick(self._order)

    def _open_view(self, asked: list[str]) -> None:
        eligible = set(asked)
        names = [name for name in self._order if name in eligible]
        if names == self._names:  # the same names in another order
            self._asked = asked
            return
        self._close_view()
        self._asked, self._names = asked, names
        self._shares = list(map(self._weights.__getitem__, names))
        self._total = sum(self._shares)
        self._standing = self._turns_of(names) if self._even else self._lags_of(names)

    def _lags_of(self, names: list[str]) -> list[float]:
        """What each is owed, in units of weight; more than one pick would be repaid as a burst."""
        total, owed = self._total, self._lag
        lags = [owed.get(name, 0.0) * total for name in names]
        if names and (max(lags) > total or min(lags) < -total):
            return [max(-total, min(total, lag)) for lag in lags]
        return lags

    def _turns_of(self, names: list[str]) -> list[float]:
        """When each was last picked. One that is new, or missed two rounds of its peers, joins in mid-queue."""
        turns = [self._turn.get(name, -inf) for name in names]
        newest = max(turns, default=-inf)
        if newest == -inf:
            return [0.0] * len(names)
        stale = newest - 2 * len(names)
        if min(turns) >= stale:
            return turns
        oldest = min(turn for turn in turns if turn >= stale)
        return [turn if turn >= stale else self._mid_queue(oldest, newest) for turn in turns]

    def _mid_queue(self, oldest: float, newest: float) -> float:
        return newest if self._rng is None else self._rng.uniform(oldest, newest)

    def _close_view(self) -> None:
        """Writes the view's state back under its names."""
        if self._even:
            self._turn.update(zip(self._names, self._standing, strict=True))
        else:
            shares_of_a_pick = map(truediv, self._standing, repeat(self._total))
            self._lag.update(zip(self._names, shares_of_a_pick, strict=True))
        self._asked, self._names, self._shares, self._standing = [], [], [], []
