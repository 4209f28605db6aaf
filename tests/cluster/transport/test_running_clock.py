"""The clock of deadlines stands still while the process does not run, and until what has arrived is read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cluster.transport.running_clock import CATCH_UP_S, LATE_S, TICK_S, RunningClock, running_clock, running_time


class Loop:
    """An event loop of one timer, and the time of its process, which the test moves."""

    def __init__(self) -> None:
        self.real = 100.0
        self.due, self.callback = 0.0, lambda: None

    def call_later(self, delay_s: float, callback: Any) -> None:
        self.due, self.callback = self.real + delay_s, callback

    def run(self, seconds: float) -> None:
        """The process runs for this long."""
        ends = self.real + seconds
        while self.due <= ends:
            self.real = max(self.real, self.due)
            self.callback()
        self.real = ends

    def pause(self, seconds: float) -> None:
        self.real += seconds


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def clock(loop: Loop) -> RunningClock:
    fake: Any = loop
    return RunningClock(fake, lambda: loop.real)


def test_it_is_the_monotonic_clock_while_the_process_runs(loop: Loop, clock: RunningClock) -> None:
    loop.run(1000)
    assert clock.now() == pytest.approx(1100) and not clock.catching_up and clock.paused_s == 0.0


def test_a_late_tick_below_the_limit_is_no_pause(loop: Loop, clock: RunningClock) -> None:
    loop.run(10)
    loop.pause(LATE_S - TICK_S - 0.01)
    assert clock.now() == pytest.approx(loop.real) and not clock.catching_up


@pytest.mark.parametrize("seconds", [1.5, 6.0, 40.0])
def test_a_pause_does_not_count_and_neither_does_the_catching_up(loop: Loop, clock: RunningClock, seconds: float) -> None:
    loop.run(10)
    before = clock.now()
    loop.pause(seconds)
    assert clock.now() == before and clock.catching_up, "judged before the first tick after the pause"
    loop.run(CATCH_UP_S / 2)
    assert clock.now() == before and clock.catching_up
    loop.run(CATCH_UP_S)
    paused_s = clock.paused_s
    assert paused_s == pytest.approx(seconds + CATCH_UP_S, abs=TICK_S) and not clock.catching_up
    loop.run(5)
    assert clock.now() == pytest.approx(loop.real - paused_s) and clock.paused_s == paused_s


def test_it_never_goes_back(loop: Loop, clock: RunningClock) -> None:
    latest = clock.now()
    for step in range(200):
        (loop.pause if step % 7 == 0 else loop.run)(step % 13 / 10)
        assert clock.now() >= latest
        latest = clock.now()


def test_a_second_pause_during_the_catching_up_does_not_count_either(loop: Loop, clock: RunningClock) -> None:
    loop.run(10)
    before = clock.now()
    loop.pause(6)
    loop.run(CATCH_UP_S / 2)
    loop.pause(6)
    loop.run(CATCH_UP_S / 2)
    assert clock.now() == before and clock.catching_up
    loop.run(2)
    assert clock.now() == pytest.approx(before + 2 - CATCH_UP_S / 2, abs=2 * TICK_S)


def test_a_loop_that_is_always_late_still_gets_on(loop: Loop, clock: RunningClock) -> None:
    before = clock.now()
    for _ in range(100):
        loop.pause(LATE_S + 0.1)
        loop.run(2 * CATCH_UP_S)
    assert clock.now() - before > 10


async def test_an_event_loop_has_one_clock() -> None:
    assert running_clock() is running_clock()
    before = running_time()
    time.sleep(2 * LATE_S)  # noqa: ASYNC251
    assert running_time() - before < 0.1


def test_where_no_event_loop_runs_time_is_monotonic() -> None:
    assert abs(running_time() - time.monotonic()) < 1


class TestWaiting:
    async def test_the_result_is_passed_on(self) -> None:
        assert await running_clock().wait_for(asyncio.sleep(0, "done"), 5) == "done"

    async def test_what_takes_too_long_is_cancelled(self) -> None:
        work = asyncio.create_task(asyncio.sleep(60))
        with pytest.raises(asyncio.TimeoutError):
            await running_clock().wait_for(work, 0.05)
        assert work.cancelled()

    async def test_who_waits_can_be_cancelled_and_the_work_is(self) -> None:
        work = asyncio.create_task(asyncio.sleep(60))
        waiting = asyncio.create_task(running_clock().wait_for(work, 60))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert work.cancelled()

    async def test_a_pause_of_this_process_is_not_the_works(self) -> None:
        waiting = asyncio.create_task(running_clock().wait_for(asyncio.sleep(0.5, "done"), 1.0))
        await asyncio.sleep(0.2)
        time.sleep(1.5)  # noqa: ASYNC251
        assert await waiting == "done"
