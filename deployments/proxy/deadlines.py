"""The deadlines of all requests of one gateway: swept a few times a second, not scheduled one by one."""

from __future__ import annotations

import asyncio
from typing import Protocol

from cluster.transport.running_clock import running_clock

SWEEP_S = 0.05  # how late a deadline may be noticed


class Limited(Protocol):
    """Something with a deadline, by the running clock. `expired` is called once `ends_at` has passed."""

    ends_at: float

    def expired(self) -> None: ...


class Deadlines:
    """Needs a running event loop. The clock stands still while the process is paused."""

    def __init__(self) -> None:
        self._loop, self.clock = asyncio.get_running_loop(), running_clock()
        self._limited: dict[Limited, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._limited)

    def add(self, limited: Limited) -> None:
        self._limited[limited] = None
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def discard(self, limited: Limited) -> None:
        self._limited.pop(limited, None)

    def _sweep(self) -> None:
        now = self.clock.now()
        due = [limited for limited in self._limited if limited.ends_at <= now]
        for limited in due:
            if limited in self._limited:
                limited.expired()
        self._timer = self._loop.call_later(SWEEP_S, self._sweep) if self._limited else None
