"""What a strategy sees and what it answers.

A strategy is one sync method, `pick`. It gets the instances that may take the request (health, breaker, capacity, drain
and version have been applied, once, by the caller), never changes them, and returns one of them or None. The caller
counts. Time and chance come in from outside, so that every decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, eq=False)
class Instance:
    """One instance of an agent as a strategy sees it; owned and kept up to date by the gateway."""

    id: str  # "instance-1": unique within the agent
    region: str = "local"
    version: str = "v1"
    priority: int = 1  # of its region; the lowest number first
    weight: float = 1.0  # share relative to the others; 0 gets nothing
    load: int = 0  # requests in flight, as best known here: newest report + own sends - own completions since
    slowness: float = 1.0  # its time over the fleet's at the same load; 1 = as fast as the median (see response_time)


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of a request when an instance is chosen for it."""

    agent: str = ""
    session: str | None = None  # the session's name, if it has one
    region: str = "local"  # where the client is
    now: float = 0.0  # monotonic seconds


class Strategy(Protocol):
    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None: ...
