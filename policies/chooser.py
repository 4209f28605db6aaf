"""Which instance answers a request, all rules together?

Combines the parts in one sync call: a session's own instance first, then the level (policies/levels.py), then within
it the session's hash order or the strategy. Each part can be replaced while traffic runs, by `configure`; the
state of the others (turns, spilling, sessions) is kept. One rule is its own: a session whose instance is only busy or
has just failed is served elsewhere once and keeps its instance.
Source: the order of decisions is Envoy's (override host, priority, then the policy).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from policies import STRATEGIES
from policies.base import Instance, Options, Request, Strategy
from policies.levels import ByDistance, ByPriority, LevelChooser
from policies.sessions.affinity import Rendezvous, SessionHome, SessionHomes, point_of

MOST_LEVELS = 256  # strategies kept, one per level


class Chooser:
    """One agent's choices at one gateway."""

    def __init__(
        self,
        strategy: str,
        rng: Random,
        options: Options | None = None,
        affinity_ttl_s: float | None = None,
    ) -> None:
        self._rng = rng
        self._hash = Rendezvous()
        self._homes: SessionHomes | None = None
        self._strategy = ""
        self._options = Options()
        self._strategies: dict[str, Strategy] = {}  # by level, so that each keeps its own turns
        self._levels = LevelChooser(rng)
        self.configure(strategy, options, affinity_ttl_s)

    def __repr__(self) -> str:
        sessions = "no affinity" if self._homes is None else f"{len(self._homes)} sessions"
        return f"<Chooser {self._strategy}, {sessions}, {self._levels!r}>"

    def configure(self, strategy: str, options: Options | None = None, affinity_ttl_s: float | None = None) -> None:
        """Takes effect with the next request. `affinity_ttl_s` None: no session affinity. Raises KeyError for a
        strategy that is not registered, and then changes nothing."""
        STRATEGIES[strategy]
        options = options or Options()
        by_distance = strategy == "geographic"
        if strategy != self._strategy or (by_distance and options != self._options):
            if by_distance or self._strategy == "geographic":
                self._levels = LevelChooser(self._rng, ByDistance(options) if by_distance else ByPriority())
            self._strategy, self._options, self._strategies = strategy, options, {}
        if affinity_ttl_s is None:
            self._homes = None
        elif self._homes is None:
            self._homes = SessionHomes(affinity_ttl_s)
        else:
            self._homes.ttl_s = affinity_ttl_s

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
        LevelChooser.narrow.
        """
        if not eligible:
            return None
        if self._homes is not None and request.session is not None:
            return self._choose_for_session(self._homes, eligible, everyone, request, request.session, stamp)
        return self._choose_new(eligible, everyone, request, stamp)

    def home(self, request: Request) -> str | None:
        """The home of the request's session after `choose`: the instance that a new token should name."""
        if self._homes is None or request.session is None:
            return None
        session_home = self._homes.get(request.agent, request.session, request.now)
        return None if session_home is None else session_home.instance

    def _choose_for_session(
        self,
        homes: SessionHomes,
        eligible: Sequence[Instance],
        everyone: Sequence[Instance],
        request: Request,
        session: str,
        stamp: object,
    ) -> Instance | None:
        remembered = homes.get(request.agent, session, request.now)
        name = request.pin or (remembered.instance if remembered else None)
        home = None if name is None else _healthy_one(name, eligible)
        if home is not None:
            _remember(homes, request, session, home)
            return home
        # No other gateway knows a fresh session, so the strategy places it; a named one is placed where all gateways agree.
        chosen = self._choose_new(eligible, everyone, request, stamp, None if request.fresh else session)
        busy = None if name is None else _healthy_one(name, everyone)  # healthy, but not available for this request
        if busy is not None:
            _remember(homes, request, session, busy)
        elif chosen is not None:
            _remember(homes, request, session, chosen)
        return chosen

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
    for instance in instances:
        if instance.id == name:
            return instance if instance.healthy else None
    return None


def _remember(homes: SessionHomes, request: Request, session: str, instance: Instance) -> None:
    homes.put(request.agent, session, SessionHome(instance.id, instance.version), request.now)
