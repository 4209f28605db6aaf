"""What happened in the cluster, newest last: a bounded log that the API, the command line and the dashboard read.

It lives in the Controller's memory only: a Controller that restarts begins anew. Not for what a program must act on (that is
state) and not for single requests (that is the access log). Ids are milliseconds since the epoch, made unique, so that they
grow across a restart and a reader that resumes behind the last id it saw misses nothing that is still kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["instance", "health", "breaker", "scale", "rollout", "region", "config", "limit", "gateway"]
KINDS: tuple[str, ...] = get_args(Kind)
KEPT = 2_000


@dataclass(frozen=True)
class Event:
    """One of them. `at` is in seconds since the epoch; `details` are numbers and names that the message is made of."""

    id: int
    at: float
    kind: str
    message: str
    agent: str | None = None
    instance: str | None = None
    version: str | None = None
    region: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Events:
    """To be used on one event loop; `add` may be called without one."""

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._log: deque[Event] = deque(maxlen=kept)
        self._clock = clock
        self._last = 0
        self._more = asyncio.Event()

    def add(
        self,
        kind: str,
        message: str,
        *,
        agent: str | None = None,
        instance: str | None = None,
        version: str | None = None,
        region: str | None = None,
        **details: Any,
    ) -> Event:
        """Raises ValueError for a kind that is none."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of event ({', '.join(KINDS)})")
        now = self._clock()
        self._last = max(self._last + 1, int(now * 1000))
        event = Event(self._last, now, kind, message, agent, instance, version, region, details)
        self._log.append(event)
        self._more.set()
        self._more = asyncio.Event()
        return event

    @property
    def last(self) -> int:
        """The newest id; 0 before there is one."""
        return self._last

    def find(
        self, *, agent: str | None = None, kind: str | None = None, after: int | None = None, limit: int | None = None
    ) -> list[Event]:
        """Those that match, oldest first; the newest `limit` of them."""
        found: list[Event] = []
        for event in reversed(self._log):
            if (after is not None and event.id <= after) or (limit is not None and len(found) >= limit):
                break
            if agent in (None, event.agent) and kind in (None, event.kind):
                found.append(event)
        return found[::-1]

    async def wait(self, after: int, patience_s: float) -> bool:
        """Returns when there is one with a higher id (True), or after that long (False)."""
        more = self._more
        if self._last > after:
            return True
        try:
            await asyncio.wait_for(more.wait(), patience_s)
        except asyncio.TimeoutError:
            return False
        return True
