"""Which instance does a session belong to?

Weighted rendezvous hashing of (agent, session) over the instances, so that two gateways that receive a new session in the
same moment agree without communicating; loads, which differ between gateways, play no part. The choice is then remembered
and exchanged for as long as the session is in use (policies/sessions/homes.py): losing one of N instances moves its own
sessions and no other, a new one takes none. Not for spreading load: a few heavy sessions stay where they are.
Source: Thaler & Ravishankar 1998; weights by Schindelhauer & Schomaker 2005.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import inf, log

from policies.base import Instance

MOST_NAMES = 65_536
MASK = (1 << 64) - 1


class Rendezvous:
    """Every gateway picks the same instance from the same instances. The only state is hashes of instance names."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def pick(self, agent: str, session: str, instances: Sequence[Instance]) -> Instance | None:
        """The first in the session's order of those with weight."""
        key = hash_of(agent, session)
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
