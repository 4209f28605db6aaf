"""Deadlines that are swept together."""

from __future__ import annotations

from deployments.proxy.deadlines import Deadlines
from tests.deployments.helpers import until


class Limited:
    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.expirations = 0

    def expired(self) -> None:
        self.expirations += 1


async def test_what_is_due_expires_once_and_what_moved_its_deadline_does_not() -> None:
    deadlines = Deadlines()
    now = deadlines.clock.now()
    due, moved, gone = Limited(now), Limited(now), Limited(now)
    for limited in (due, moved, gone):
        deadlines.add(limited)
    moved.ends_at = now + 1000
    deadlines.discard(gone)

    def expire() -> None:
        due.expirations += 1
        deadlines.discard(due)

    due.expired = expire  # type: ignore[method-assign]
    await until(lambda: due.expirations)
    await until(lambda: len(deadlines) == 1)
    assert (due.expirations, moved.expirations, gone.expirations) == (1, 0, 0)


async def test_one_that_another_one_ends_does_not_expire() -> None:
    deadlines = Deadlines()
    now = deadlines.clock.now()
    first, second = Limited(now), Limited(now)

    def expire() -> None:
        first.expirations += 1
        deadlines.discard(first)
        deadlines.discard(second)

    first.expired = expire  # type: ignore[method-assign]
    deadlines.add(first)
    deadlines.add(second)
    await until(lambda: not len(deadlines))
    assert (first.expirations, second.expirations) == (1, 0)


async def test_without_any_deadline_nothing_wakes() -> None:
    deadlines = Deadlines()
    one = Limited(0.0)
    deadlines.add(one)
    deadlines.discard(one)
    await until(lambda: deadlines._timer is None)
