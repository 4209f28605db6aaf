from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from deployments.instance.watchdog import LoopWatchdog


def stick(seconds: float) -> None:
    """Blocks the loop that it is called on."""
    time.sleep(seconds)


async def test_a_loop_that_is_stuck_for_longer_than_the_limit_ends_the_process_and_says_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = threading.Event()
    watchdog = LoopWatchdog("instance-1", limit=5, tick_s=0.02, end=ended.set)

    def stuck_here() -> None:
        assert ended.wait(10)

    with caplog.at_level(logging.ERROR, "swiftclaw.instance"):
        stuck_here()  # blocks the loop until the process would have ended
    watchdog.stop()
    assert "instance-1: the event loop has been stuck" in caplog.text
    assert "stuck_here" in caplog.text


async def test_a_loop_that_is_stuck_for_less_than_the_limit_again_and_again_is_left_alone() -> None:
    ended = threading.Event()
    watchdog = LoopWatchdog("instance-1", limit=1000, tick_s=0.01, end=ended.set)
    for _ in range(5):
        stick(0.1)  # ten ticks
        await asyncio.sleep(0.02)
    watchdog.stop()
    assert not ended.is_set()


async def test_late_heartbeats_restart_the_count() -> None:
    ended = threading.Event()
    watchdog = LoopWatchdog("instance-1", limit=100, tick_s=0.005, end=ended.set)
    for _ in range(20):  # 200 ticks in all, never 100 in a row
        stick(0.05)
        await asyncio.sleep(0.02)
    watchdog.stop()
    assert not ended.is_set()


async def test_a_hanging_thread_is_not_a_stuck_loop() -> None:
    ended, release = threading.Event(), threading.Event()
    watchdog = LoopWatchdog("instance-1", limit=100, tick_s=0.01, end=ended.set)
    hanging = asyncio.ensure_future(asyncio.to_thread(release.wait, 10))
    await asyncio.sleep(1.5)
    watchdog.stop()
    release.set()
    await hanging
    assert not ended.is_set()


async def test_a_stopped_watchdog_ignores_a_stuck_loop() -> None:
    ended = threading.Event()
    watchdog = LoopWatchdog("instance-1", limit=3, tick_s=0.01, end=ended.set)
    watchdog.stop()
    stick(0.2)
    assert not ended.is_set()
