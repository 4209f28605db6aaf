"""Ends a process whose event loop is stuck: it cannot be asked to stop, and would keep its CPU, GPU and memory.

Ray Serve's `check_health` runs on the same loop and gives up a stuck replica too (`health_check_timeout_s` x 3, see
cluster/placement/serve.py), but then waits as long as a drain may take for it to stop by itself. So a thread schedules a
heartbeat on the loop: after `limit` of the thread's ticks without one, it logs where the loop hangs and ends the process, and
Serve starts another. It counts ticks and not the clock, so that a process that was frozen (SIGSTOP, a sleeping laptop) is not
ended when it continues. A handler that hangs in a thread does not block the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable

log = logging.getLogger("swiftclaw.instance")

STUCK_S = 30
TICK_S = 1.0
EXIT_STATUS = 70  # EX_SOFTWARE


def end_process() -> None:
    """End the process at once, without exit handlers, which may need the loop."""
    for handler in [*log.handlers, *logging.getLogger().handlers]:
        handler.flush()
    os._exit(EXIT_STATUS)


class LoopWatchdog:
    """Watches the loop that it is created on. `limit`: ticks of `tick_s` seconds; default: 30 seconds."""

    def __init__(self, name: str, limit: int = STUCK_S, tick_s: float = TICK_S, end: Callable[[], None] = end_process) -> None:
        self._name, self._limit, self._tick_s, self._end = name, limit, tick_s, end
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._heartbeat = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        missed = 0
        self._schedule_heartbeat()
        while not self._stopped.wait(self._tick_s):
            if self._heartbeat.is_set():
                missed = 0
                self._schedule_heartbeat()
                continue
            missed += 1
            if missed >= self._limit:
                stuck_s = missed * self._tick_s
                log.error(
                    "%s: the event loop has been stuck for %g s, ending the process:\n%s",
                    self._name,
                    stuck_s,
                    self._stack(),
                )
                self._end()
                return

    def _schedule_heartbeat(self) -> None:
        self._heartbeat.clear()
        try:
            self._loop.call_soon_threadsafe(self._heartbeat.set)
        except RuntimeError:  # the loop is closed: the process ends anyway
            self._stopped.set()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        return "".join(traceback.format_stack(frame)) if frame else "(unknown)"
