"""The wall clock of a process is stepped while it runs; its monotonic clock, and other processes, are not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.campaign.clocks import Clocks

PROGRAM = """
import time
for line in iter(input, "end"):
    print(time.time(), time.time_ns(), time.monotonic(), flush=True)
"""
TOLERANCE_S = 30.0  # that a line and its answer may take


class Process:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.pid = process, process.pid

    def ahead_s(self) -> tuple[float, float, float]:
        """How far its clocks are ahead of ours: time(), time_ns(), monotonic()."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("now\n")
        self._process.stdin.flush()
        now, now_ns, monotonic = map(float, self._process.stdout.readline().split())
        return now - time.time(), now_ns / 1e9 - time.time(), monotonic - time.monotonic()

    def is_ahead(self, seconds: float) -> bool:
        by_time, by_ns, monotonic = self.ahead_s()
        return abs(by_time - seconds) < TOLERANCE_S and abs(by_ns - seconds) < TOLERANCE_S and abs(monotonic) < TOLERANCE_S


@contextmanager
def running(clocks: Clocks) -> Iterator[Process]:
    environment = clocks.environment({**os.environ, "PYTHONPATH": ""})
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    one = Process(process)
    yield one
    process.communicate("end\n", timeout=30)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    return Clocks(tmp_path / "clocks")


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_step_moves_the_wall_clock_of_a_running_process_and_back(clocks: Clocks, seconds: float) -> None:
    with running(clocks) as one:
        assert one.is_ahead(0)
        assert clocks.put_ahead(seconds) == 1
        assert one.is_ahead(seconds)
        clocks.put_ahead(0.0)
        assert one.is_ahead(0)


def test_one_process_is_stepped_and_another_is_not(clocks: Clocks) -> None:
    with running(clocks) as one, running(clocks) as other:
        assert one.is_ahead(0) and other.is_ahead(0)  # both have started
        assert clocks.put_ahead(3600.0, [one.pid]) == 1
        assert one.is_ahead(3600.0) and other.is_ahead(0)


def test_a_process_that_starts_later_has_the_clock_of_all(clocks: Clocks) -> None:
    clocks.put_ahead(3600.0)
    with running(clocks) as one:
        assert one.is_ahead(3600.0)


def test_a_process_that_does_not_take_part_is_not_counted(clocks: Clocks) -> None:
    assert clocks.put_ahead(3600.0, [os.getpid()]) == 0
    assert clocks.put_ahead(3600.0) == 0


def test_what_was_in_the_path_stays_there(clocks: Clocks) -> None:
    assert clocks.environment({"PYTHONPATH": "/project"})["PYTHONPATH"].endswith(":/project")
