"""Which instance answers this request, everything considered?

Puts the parts together in one sync call: a session's own place first, then the level (policies/levels.py), then within
it the session's hash order or the strategy. Each part can be replaced while traffic runs, by `configure`; what the
others know (turns, spilling, sessions) is kept. Nothing here is a rule of its own, but for one: a session whose
instance is only busy or has just failed goes elsewhere for once and keeps its place.
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
        self._places: SessionHomes | None = None
        self._strategy = ""
        self._options = Options()
        self._inside: dict[str, Strategy] = {}  # by level, so that each keeps its own turns
        self._levels = LevelChooser(rng)
        self.configure(strategy, options, affinity_ttl_s)

    def __repr__(self) -> str:
        sessions = "no affinity" if self._places is None else f"{len(self._places)} sessions"
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
            self._strategy, self._options, self._inside = strategy, options, {}
        if affinity_ttl_s is None:
            self._places = None
        elif self._places is None:
            self._places = SessionHomes(affinity_ttl_s)
        else:
            self._places.ttl_s = affinity_ttl_s

    def choose(
        self,
        eligible: Sequence[Instance],
        everyone: Sequence[Instance],
        request: Request,
        stamp: object = None,
    ) -> Instance | None:
        """One of `eligible`, or None.

        `eligible`: those that could take this request (version, capacity, breaker, not tried already). Unhealthy ones
        among them are used only when their level panics, draining ones only by sessions that live there; leaving
        either out is allowed and means never. `everyone`: all that are known, `eligible` included. `stamp`: see
        LevelChooser.narrow.
        """
        if not eligible:
            return None
        if self._places is not None and request.session is not None:
            return self._choose_for_session(self._places, eligible, everyone, request, request.session, stamp)
        return self._choose_new(eligible, everyone, request, stamp)

    def home(self, request: Request) -> str | None:
        """The instance that the request's session lives at after `choose`: what a new token should name."""
        if self._places is None or request.session is None:
            return None
        place = self._places.get(request.agent, request.session, request.now)
        return None if place is None else place.instance

    def _choose_for_session(
        self,
        places: SessionHomes,
        eligible: Sequence[Instance],
        everyone: Sequence[Instance],
        request: Request,
        session: str,
        stamp: object,
    ) -> Instance | None:
        remembered = places.get(request.agent, session, request.now)
        name = request.pin or (remembered.instance if remembered else None)
        home = None if name is None else _well(name, eligible)
        if home is not None:
            _settle(places, request, session, home)
            return home
        # A session that nobody else knows goes where the strategy says; one with a name where all gateways agree.
        chosen = self._choose_new(eligible, everyone, request, stamp, None if request.fresh else session)
        busy = None if name is None else _well(name, everyone)  # there, only not to be had for this request
        if busy is not None:
            _settle(places, request, session, busy)
        elif chosen is not None:
            _settle(places, request, session, chosen)
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
        left = eligible
        while left:
            level, members = self._levels.narrow(left, everyone, request, point=point, stamp=stamp)
            if not members:
                return None
            if session is None:
                chosen = self._inside_of(level).pick(members, request)
            else:
                chosen = self._hash.pick(request.agent, session, members)
            if chosen is not None:
                return chosen
            nobody = {instance.id for instance in members}  # all of weight 0
            left = [instance for instance in left if instance.id not in nobody]
        return None

    def _inside_of(self, level: str) -> Strategy:
        strategy = self._inside.get(level)
        if strategy is None:
            if len(self._inside) >= MOST_LEVELS:
                self._inside.clear()
            strategy = self._inside[level] = STRATEGIES[self._strategy](self._rng, self._options)
        return strategy


def _well(name: str, instances: Sequence[Instance]) -> Instance | None:
    for instance in instances:
        if instance.id == name:
            return instance if instance.healthy else None
    return None


def _settle(places: SessionHomes, request: Request, session: str, instance: Instance) -> None:
    places.put(request.agent, session, SessionHome(instance.id, instance.version), request.now)
