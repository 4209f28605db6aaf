"""A bounded log of cluster events, oldest first, read by the admin API, the command line and the dashboard.

It is kept in the Controller's memory only and starts empty after a restart. Not for anything that a program must act on (that
is state) and not for single requests (that is the access log). Ids are milliseconds since the epoch, made unique: they keep
growing across a restart, so a reader that resumes after the last id it received misses no event that is still kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["instance", "health", "breaker", "scale", "rollout", "region", "config", "limit", "gateway", "session"]
KINDS: tuple[str, ...] = get_args(Kind)
KEPT = 2_000


@dataclass(frozen=True)
class Event:
    """One event. `at` is in seconds since the epoch; `details` holds the values that the message was composed from."""

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
    """The log. Used on one event loop; `add` may be called without one."""

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._log: deque[Event] = deque(maxlen=kept)
        self._clock = clock
        self._last = 0
        self._added = asyncio.Event()

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
        """Append an event. Raises ValueError for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not an event kind (allowed: {', '.join(KINDS)})")
        now = self._clock()
        self._last = max(self._last + 1, int(now * 1000))
        event = Event(self._last, now, kind, message, agent, instance, version, region, details)
        self._log.append(event)
        self._added.set()
        self._added = asyncio.Event()
        return event

    def __repr__(self) -> str:
        return f"<Events: {len(self._log)} of at most {self._log.maxlen}, last id {self._last}>"

    @property
    def last(self) -> int:
        """The newest id; 0 while the log is empty."""
        return self._last

    def find(
        self, *, agent: str | None = None, kind: str | None = None, after: int | None = None, limit: int | None = None
    ) -> list[Event]:
        """The newest `limit` matching events, oldest first.

        An id `after` the newest one is of an earlier life, whose clock was ahead: every event is new to that reader.
        """
        if after is not None and after > self._last:
            after = None
        matching: list[Event] = []
        for event in reversed(self._log):
            if (after is not None and event.id <= after) or (limit is not None and len(matching) >= limit):
                break
            if agent in (None, event.agent) and kind in (None, event.kind):
                matching.append(event)
        return matching[::-1]

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait for an event with a higher id: True when there is one, False after `timeout_s`."""
        added = self._added
        if self._last > after:
            return True
        try:
            await asyncio.wait_for(added.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True
