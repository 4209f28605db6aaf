"""Strikes every fault of a plan at its time, each in a thread, and writes down what became of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping

import psutil

from tests.campaign.faults import Kind
from tests.campaign.plan import Plan, PlannedFault
from tests.campaign.record import Fault, Lines
from tests.campaign.stage import Skipped, Stage

IMPOSSIBLE = (Skipped, OSError, ValueError, KeyError, IndexError, StopIteration, psutil.Error)


class Driver:
    """`progress` gets a line when a fault begins. `faults`: those that are over."""

    def __init__(self, stage: Stage, out: Lines, kinds: Mapping[str, Kind], progress: Callable[[str], None]) -> None:
        self._stage, self._out, self._kinds, self._progress = stage, out, kinds, progress
        self._threads: list[threading.Thread] = []
        self.faults: list[Fault] = []

    def run(self, plan: Plan, began: float) -> None:
        """Return at the end of the plan's time; faults may still be under way."""
        for planned in plan.faults:
            self._stage.over.wait(max(0.0, began + planned.at_s - time.monotonic()))
            thread = threading.Thread(target=self._strike, args=(planned,), daemon=True, name=planned.kind)
            thread.start()
            self._threads.append(thread)
        self._stage.over.wait(max(0.0, began + plan.seconds - time.monotonic()))

    def finish(self, within_s: float) -> None:
        """Wait for the faults under way; those that take longer are ended."""
        ends = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        self._stage.end()
        for thread in self._threads:
            thread.join(20)
        self._out.close()

    def _strike(self, planned: PlannedFault) -> None:
        fault = Fault(planned.number, planned.kind, began=time.monotonic())
        self._progress(f"{planned.number:3} {planned.kind}")
        try:
            self._kinds[planned.kind].strike(self._stage, random.Random(planned.chance), fault)
        except IMPOSSIBLE as error:
            fault.skipped = str(error) if isinstance(error, Skipped) else f"{type(error).__name__}: {error}"
        fault.ended = time.monotonic()
        self.faults.append(fault)
        self._out.write(fault)
