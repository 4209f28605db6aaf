"""Which instance answers a request, all rules together?

Combines the parts in one sync call: a session's own instance first, then the level (policies/spillover.py), then within
it the session's hash order or the strategy. Each part can be replaced while traffic runs, by `configure`; the
state of the others (turns, spilling) is kept. Not for remembering where sessions live: policies/sessions/homes.py.
Source: the order of decisions is Envoy's (override host, priority, then the policy).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from policies import STRATEGIES
from policies.base import Instance, Options, Request, Strategy
from policies.candidates import Candidates
from policies.sessions.affinity import Rendezvous, point_of
from policies.spillover import ByDistance, ByPriority, LevelChooser

MOST_LEVELS = 256  # strategies kept, one per level


class Chooser:
    """One agent's choices at one gateway."""

    def __init__(self, strategy: str, rng: Random, options: Options | None = None, *, affinity: bool = False) -> None:
        self._rng = rng
        self._hash = Rendezvous()
        self._affinity = False
        self._strategy = ""
        self._options = Options()
        self._strategies: dict[str, Strategy] = {}  # by level, so that each keeps its own turns
        self._levels = LevelChooser(rng)
        self.configure(strategy, options, affinity=affinity)

    def __repr__(self) -> str:
        sessions = "with affinity" if self._affinity else "no affinity"
        return f"<Chooser {self._strategy}, {sessions}, {self._levels!r}>"

    def configure(self, strategy: str, options: Options | None = None, *, affinity: bool = False) -> None:
        """Takes effect with the next request. `affinity`: sessions count. Raises KeyError for a strategy that is not
        registered, and then changes nothing."""
        STRATEGIES[strategy]
        options = options or Options()
        by_distance = strategy == "geographic"
        if strategy != self._strategy or (by_distance and options != self._options):
            if by_distance or self._strategy == "geographic":
                self._levels = LevelChooser(self._rng, ByDistance(options) if by_distance else ByPriority())
            self._strategy, self._options, self._strategies = strategy, options, {}
        self._affinity = affinity

    def choose(
        self,
        eligible: Sequence[Instance],
        everyone: Sequence[Instance],
        request: Request,
        stamp: object = None,
    ) -> Instance | None:
        """One of `eligible`, or None.

        `eligible`: the instances that could take this request (version, capacity, breaker, not tried already). Unhealthy
        ones are used only when their level panics, draining ones only by their own sessions; the caller may leave out
        either, and they are never used. `everyone`: all instances, `eligible` included. `stamp`: see
        LevelChooser.narrow. Of a large fleet, `eligible` are Candidates, and not each of them is looked at.
        """
        if not eligible:
            return None
        if not self._affinity or request.session is None:
            return self._choose_new(eligible, everyone, request, stamp)
        home = None if request.pin is None else _healthy_one(request.pin, eligible)
        if home is not None:
            return home
        # No other gateway knows a fresh session, so the strategy places it; a named one is placed where all gateways agree.
        return self._choose_new(eligible, everyone, request, stamp, None if request.fresh else request.session)

    def _choose_new(
        self,
        eligible: Sequence[Instance],
        everyone: Sequence[Instance],
        request: Request,
        stamp: object,
        session: str | None = None,
    ) -> Instance | None:
        point = None if session is None else point_of(request.agent, session)
        remaining = eligible
        while remaining:
            level, members = self._levels.narrow(remaining, everyone, request, point=point, stamp=stamp)
            if not members:
                return None
            if session is None:
                chosen = self._strategy_of(level).pick(members, request)
            else:
                chosen = self._hash.pick(request.agent, session, members)
            if chosen is not None:
                return chosen
            weightless = {instance.id for instance in members}  # all of weight 0
            remaining = [instance for instance in remaining if instance.id not in weightless]
        return None

    def _strategy_of(self, level: str) -> Strategy:
        strategy = self._strategies.get(level)
        if strategy is None:
            if len(self._strategies) >= MOST_LEVELS:
                self._strategies.clear()
            strategy = self._strategies[level] = STRATEGIES[self._strategy](self._rng, self._options)
        return strategy


def _healthy_one(name: str, instances: Sequence[Instance]) -> Instance | None:
    if isinstance(instances, Candidates):
        found = instances.find(name)
    else:
        found = next((instance for instance in instances if instance.id == name), None)
    return found if found is not None and found.healthy else None
