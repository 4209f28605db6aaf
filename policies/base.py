"""What does a strategy receive and return?

A strategy is one sync method, `pick`. It receives the instances that may take the request (the caller has
applied health, breaker, capacity, drain and version, once), never changes them, and returns one of them or None.
The caller counts. Time and chance come in from outside, so that every decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.regions.distance import Distances


@dataclass(slots=True, eq=False)
class Instance:
    """One instance of an agent as a strategy sees it; owned and kept up to date by the gateway.

    Strategies read the first seven fields. The others decide which instances are eligible (levels, chooser).
    `id` and `region` stay the same for as long as the object lives; everything else may change between two picks.
    """

    id: str  # "instance-1": unique within the agent
    region: str = "local"
    version: str = "v1"
    priority: int = 1  # of its region; the lowest number first
    weight: float = 1.0  # share relative to the others; 0 gets nothing
    load: float = 0  # requests in flight, as best known here (policies/load/load_view.py)
    slowness: float = 1.0  # its time over the fleet's at the same load; 1 = as fast as the median (see slowness)
    healthy: bool = True  # its checks pass and its breaker lets requests through
    checked: bool = True  # False until its first health check: it counts neither for nor against its level
    draining: bool = False  # keeps the sessions that are pinned to it, receives no new ones
    capacity: int = 0  # maximum of requests in flight; 0: no limit


@dataclass(frozen=True, slots=True)
class Request:
    """A request at the time when an instance is chosen for it."""

    agent: str = ""
    session: str | None = None  # the session's name, if it has one
    region: str = "local"  # where the client is
    now: float = 0.0  # monotonic seconds
    pin: str | None = None  # the instance that the session lives at; before it is looked up: the one that its token names
    fresh: bool = False  # the session was made for this request: no other gateway can know it yet
    version: str | None = None  # the version that should answer; None: any


@dataclass(frozen=True)
class Options:
    """What some strategies need beyond the instances. Every strategy is built as `(rng, options)`."""

    regions: tuple[str, ...] = ()  # geographic: the regions to route among; (): all
    distances: Distances = field(default_factory=Distances)


class Strategy(Protocol):
    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None: ...
