"""The plan of a run: which faults, when, and with which chance each, drawn up from the seed before the run.

What still differs between two runs of a plan is the cluster's doing: which instances are healthy, how long a command takes. A
part of a plan is a plan: that is how a violation is replayed, and how the shrinker looks for the faults that it needs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

FIRST_S = 3.0  # after the load's start


class Dealt(Protocol):
    """What a plan needs to know of a kind of fault."""

    @property
    def cards(self) -> int: ...
    @property
    def apart_s(self) -> float: ...


@dataclass(frozen=True)
class PlannedFault:
    """`at_s`: after the load's start. `chance`: the seed of what the fault draws itself."""

    number: int
    at_s: float
    kind: str
    chance: int


@dataclass(frozen=True)
class Plan:
    """`seconds`: the length of the part with faults."""

    seed: int
    seconds: float
    faults: tuple[PlannedFault, ...] = field(default=())

    def only(self, numbers: Iterable[int]) -> Plan:
        """The same run with these faults alone, at the same times and with the same chance."""
        kept = set(numbers)
        return Plan(self.seed, self.seconds, tuple(one for one in self.faults if one.number in kept))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, file: Path) -> Plan:
        content = json.loads(file.read_text())
        return cls(content["seed"], content["seconds"], tuple(PlannedFault(**one) for one in content["faults"]))


def draw_up(
    seed: int, seconds: float, kinds: Mapping[str, Dealt], *, gap_s: tuple[float, float] = (5.0, 8.0), pairs: float = 0.3
) -> Plan:
    """A plan of that length: a fault every `gap_s` (least, most), and of these a share of `pairs` two at once.

    Kinds are dealt from a shuffled deck, so that each has its turn; a card that comes too soon after the one before it of its
    kind waits in the deck.
    """
    rng, faults, deck = random.Random(seed), list[PlannedFault](), list[str]()
    earliest = dict.fromkeys(kinds, 0.0)
    at_s = FIRST_S
    while at_s < seconds:
        for _ in range(2 if rng.random() < pairs else 1):
            if (kind := _next_card(deck, kinds, earliest, at_s, rng)) is not None:
                earliest[kind] = at_s + kinds[kind].apart_s
                faults.append(PlannedFault(len(faults) + 1, round(at_s, 3), kind, rng.randrange(2**32)))
        at_s += rng.uniform(*gap_s)
    return Plan(seed, seconds, tuple(faults))


def _next_card(
    deck: list[str], kinds: Mapping[str, Dealt], earliest: Mapping[str, float], at_s: float, rng: random.Random
) -> str | None:
    """Take the first card that may be played now out of the deck; None: there is none, even in a new deck behind it."""
    for _ in range(2):
        position = next((index for index, name in enumerate(deck) if earliest[name] <= at_s), None)
        if position is not None:
            return deck.pop(position)
        new = [name for name, kind in kinds.items() for _ in range(kind.cards)]
        rng.shuffle(new)
        deck += new
    return None
