"""Which instance does a session belong to?

Weighted rendezvous hashing of (agent, session) over the instances, passing over those that carry more than 1.25 x the
mean + 1, so that all gateways agree without communicating; then remembered for as long as the session is in use. Losing one
of N instances moves its own sessions and no other; a new one takes no session that is remembered or holds a token
(policies/sessions/session_token.py). Not for spreading load: a few heavy sessions stay where they are.
Source: Thaler & Ravishankar 1998; weights by Schindelhauer & Schomaker 2005; the bound is Mirrokni et al. 2018.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf, log

from policies.base import Instance

OVER_MEAN = 1.25
MOST_SESSIONS = 100_000
MOST_NAMES = 65_536
MASK = (1 << 64) - 1


class Rendezvous:
    """Every gateway picks the same instance from the same instances. The only state is hashes of instance names."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def pick(self, agent: str, session: str, instances: Sequence[Instance]) -> Instance | None:
        """The first in the session's order that is not over the load bound; the first of all if all are."""
        return self._first(hash_of(agent, session), within_bound(instances))

    def _first(self, key: int, instances: Sequence[Instance]) -> Instance | None:
        best: Instance | None = None
        lowest = inf
        for instance in instances:
            if instance.weight <= 0:
                continue
            cost = self._cost(key, instance)
            if cost < lowest or (cost == lowest and best is not None and instance.id < best.id):
                best, lowest = instance, cost
        return best

    def _cost(self, key: int, instance: Instance) -> float:
        name = self._names.get(instance.id)
        if name is None:
            if len(self._names) >= MOST_NAMES:
                self._names.clear()
            name = self._names[instance.id] = hash_of(instance.id)
        return -log(_unit(key ^ name)) / instance.weight


def within_bound(instances: Sequence[Instance]) -> Sequence[Instance]:
    """The instances whose load is at most 1.25 x their share of the load + 1; all, if there are none."""
    load = sum([instance.load for instance in instances])
    if load == 0:
        return instances
    weight = sum([instance.weight for instance in instances])
    if weight <= 0:
        return instances
    per_weight = OVER_MEAN * load / weight
    return [instance for instance in instances if instance.load <= per_weight * instance.weight + 1] or instances


def point_of(agent: str, session: str) -> float:
    """The session's own point from 0 up to 100, the same at every gateway."""
    return 100 * (hash_of("level", agent, session) / (MASK + 1))


def hash_of(*names: str) -> int:
    """64 bits that are the same in every process (Python's own hash is not)."""
    digest = blake2b(digest_size=8)
    for name in names:
        encoded = name.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(4, "big"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "big")


def _unit(bits: int) -> float:
    """Mixes 64 bits (MurmurHash3's finalizer) into a number above 0 and up to 1."""
    bits ^= bits >> 33
    bits = bits * 0xFF51AFD7ED558CCD & MASK
    bits ^= bits >> 33
    bits = bits * 0xC4CEB9FE1A85EC53 & MASK
    bits ^= bits >> 33
    return ((bits >> 11) + 1) * 2.0**-53


@dataclass(frozen=True, slots=True)
class SessionHome:
    """The instance and version that serve a session."""

    instance: str
    version: str


class SessionHomes:
    """Where sessions were sent, for as long as they are in use: `ttl_s` counts from the last request.

    Bounded: the session that was idle longest is forgotten first.
    """

    def __init__(self, ttl_s: float = 3600.0, most: int = MOST_SESSIONS) -> None:
        self.ttl_s = ttl_s
        self._most = most
        self._homes: OrderedDict[tuple[str, str], tuple[SessionHome, float]] = OrderedDict()  # idle longest first

    def __len__(self) -> int:
        return len(self._homes)

    def get(self, agent: str, session: str, now: float) -> SessionHome | None:
        """A look-up counts as use."""
        self._expire(now)
        key = (agent, session)
        entry = self._homes.get(key)
        if entry is None:
            return None
        self._homes[key] = (entry[0], now)
        self._homes.move_to_end(key)
        return entry[0]

    def put(self, agent: str, session: str, home: SessionHome, now: float) -> None:
        key = (agent, session)
        self._homes[key] = (home, now)
        self._homes.move_to_end(key)
        self._expire(now)
        while len(self._homes) > self._most:
            self._homes.popitem(last=False)

    def _expire(self, now: float) -> None:
        while self._homes:
            key, (_, used) = next(iter(self._homes.items()))
            if now - used <= self.ttl_s:
                return
            del self._homes[key]
