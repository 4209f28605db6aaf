"""Ends a process whose event loop is stuck: nobody could ask it to leave, and it would hold its CPU, GPU and memory.

Ray Serve's `check_health` runs on the same loop and gives up a stuck replica too (`health_check_timeout_s` x 3, see
cluster/placement/serve.py), but then waits as long as a drain may take for it to stop by itself. So a thread feels the pulse
of the loop: after `limit` seconds of its own in which the loop ran nothing, it writes down where the loop hangs and ends
the process; Serve starts another. It counts its own ticks, not the clock: a process that was frozen (SIGSTOP, a laptop
that slept) has missed nothing. A handler that hangs in a thread does not stop the loop.
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

WEDGED_S = 30
TICK_S = 1.0
EXIT_STATUS = 70  # EX_SOFTWARE


def end_process() -> None:
    """At once, without the exit handlers: they may want the loop."""
    for handler in [*log.handlers, *logging.getLogger().handlers]:
        handler.flush()
    os._exit(EXIT_STATUS)


class LoopWatchdog:
    """Made on the loop that it watches."""

    def __init__(self, name: str, limit: int = WEDGED_S, tick_s: float = TICK_S, end: Callable[[], None] = end_process) -> None:
        self._name, self._limit, self._tick_s, self._end = name, limit, tick_s, end
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._beat = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        missed = 0
        self._ask()
        while not self._stopped.wait(self._tick_s):
            if self._beat.is_set():
                missed = 0
                self._ask()
                continue
            missed += 1
            if missed >= self._limit:
                stuck_s = missed * self._tick_s
                log.error("%s: the event loop has been stuck for %g s, here:\n%s", self._name, stuck_s, self._where())
                self._end()
                return

    def _ask(self) -> None:
        self._beat.clear()
        try:
            self._loop.call_soon_threadsafe(self._beat.set)
        except RuntimeError:  # the loop was closed: the process ends anyway
            self._stopped.set()

    def _where(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        return "".join(traceback.format_stack(frame)) if frame else "(unknown)"
