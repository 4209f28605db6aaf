"""Which instance does a session belong to?

Weighted rendezvous hashing of (agent, session) over the instances, so that two gateways that receive a new session in the
same moment agree without communicating; loads, which differ between gateways, play no part. The choice is then remembered
and exchanged for as long as the session is in use (policies/sessions/homes.py): losing one of N instances moves its own
sessions and no other, a new one takes none. Not for spreading load: a few heavy sessions stay where they are.
Source: Thaler & Ravishankar 1998; weights by Schindelhauer & Schomaker 2005.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import inf, isqrt, log

from policies.base import Instance
from policies.candidates import LARGE, Candidates, Group

MOST_NAMES = 65_536
MASK = (1 << 64) - 1


class Rendezvous:
    """Every gateway picks the same instance from the same instances. The only state is hashes of instance names.

    Of Candidates in two steps, which cost the root of their number: a part of the fleet by its weight, then an instance of it.
    """

    __slots__ = ("_group", "_looks", "_names", "_parts")

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._group: Group | None = None  # that `_parts` were made of
        self._parts: list[_Part] = []
        self._looks = 0  # picks until the weights of the parts are added up again

    def pick(self, agent: str, session: str, instances: Sequence[Instance]) -> Instance | None:
        """The first in the session's order of those with weight."""
        key = hash_of(agent, session)
        if not isinstance(instances, Candidates):
            return self._first(key, instances)
        self._refresh_parts(instances.group)
        parts = [part for part in self._parts if part.weight > 0]
        for part in sorted(parts, key=lambda part: (-log(_unit(key ^ part.name)) / part.weight, part.name)):
            chosen = self._first(key, filter(instances.may, part.members))
            if chosen is not None:
                return chosen
        return None

    def _first(self, key: int, instances: Iterable[Instance]) -> Instance | None:
        best: Instance | None = None
        lowest = inf
        for instance in instances:
            if instance.weight <= 0:
                continue
            cost = -log(_unit(key ^ self._name(instance.id))) / instance.weight
            if cost < lowest or (cost == lowest and best is not None and instance.id < best.id):
                best, lowest = instance, cost
        return best

    def _refresh_parts(self, group: Group) -> None:
        if group is not self._group:
            self._group, self._looks = group, 0
            count = 1 << (isqrt(len(group.members)).bit_length() - 1) if group.members else 1
            self._parts = [_Part(hash_of("part", str(number))) for number in range(count)]
            for instance in group.members:
                self._parts[self._name(instance.id) % count].members.append(instance)
        self._looks -= 1
        if self._looks < 0:
            self._looks = len(group.members) // LARGE
            for part in self._parts:
                part.weight = sum(instance.weight for instance in part.members)

    def _name(self, id: str) -> int:
        name = self._names.get(id)
        if name is None:
            if len(self._names) >= MOST_NAMES:
                self._names.clear()
            name = self._names[id] = hash_of(id)
        return name


class _Part:
    """The instances of a large fleet whose names' hashes fall into it."""

    __slots__ = ("members", "name", "weight")

    def __init__(self, name: int) -> None:
        self.name, self.weight = name, 0.0
        self.members: list[Instance] = []


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
