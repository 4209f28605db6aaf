"""Faults strike at their time, only at processes of their cluster, and leave nothing behind when they are over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.campaign.cluster import Cluster, Settings, finish
from tests.campaign.faults import FaultFunction, Kind
from tests.campaign.faults.driver import Driver
from tests.campaign.plan import Plan, PlannedFault
from tests.campaign.record import Fault, Lines, read
from tests.campaign.sampler import Sampler
from tests.campaign.stage import Skipped, Stage

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Of a cluster that does not run; its processes are what a test starts for it."""
    return Stage(Cluster(tmp_path, Settings()), cast(Sampler, None))


@pytest.fixture
def process(stage: Stage) -> Iterator[subprocess.Popen[str]]:
    yield from sleeping(stage.cluster.environment)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[str]]:
    """A process of another cluster."""
    yield from sleeping({**os.environ, "RAY_TMPDIR": "/elsewhere"})


def sleeping(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(SLEEP, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def state(process: subprocess.Popen[str]) -> str:
    return str(psutil.Process(process.pid).status())


def await_state(process: subprocess.Popen[str], expected: str) -> None:
    ends = time.monotonic() + 10
    while state(process) != expected:
        assert time.monotonic() < ends, state(process)
        time.sleep(0.01)


def test_a_kill_is_recorded_with_its_processes_and_moment(stage: Stage, process: subprocess.Popen[str]) -> None:
    fault = Fault(1, "kill_instance", time.monotonic())
    stage.kill(fault, process.pid)
    assert process.wait(10) == -signal.SIGKILL
    assert fault.pids == [process.pid]
    assert fault.began <= fault.struck <= time.monotonic()


def test_a_process_of_another_cluster_is_left_alone(stage: Stage, stranger: subprocess.Popen[str]) -> None:
    fault = Fault(1, "kill_instance", time.monotonic())
    with pytest.raises(Skipped, match="not the cluster's"):
        stage.kill(fault, stranger.pid)
    with pytest.raises(Skipped, match="not the cluster's"):
        stage.freeze(stranger.pid, 60, fault)
    assert stranger.poll() is None
    assert state(stranger) != psutil.STATUS_STOPPED
    assert fault.struck == 0


def test_a_frozen_process_runs_again_after_its_time(stage: Stage, process: subprocess.Popen[str]) -> None:
    fault = Fault(1, "freeze_instance", time.monotonic())
    stage.freeze(process.pid, 0.1, fault)
    assert fault.struck
    assert time.monotonic() - fault.struck >= 0.1
    await_state(process, psutil.STATUS_SLEEPING)


def test_a_frozen_process_runs_again_when_the_faults_are_over(stage: Stage, process: subprocess.Popen[str]) -> None:
    thread = threading.Thread(target=stage.freeze, args=(process.pid, 600, Fault(1, "freeze_instance", 0.0)))
    thread.start()
    await_state(process, psutil.STATUS_STOPPED)
    stage.end()
    thread.join(10)
    assert not thread.is_alive()
    await_state(process, psutil.STATUS_SLEEPING)


def test_a_command_that_takes_too_long_is_ended(stage: Stage) -> None:
    process = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    status, output = finish(process, 0.5)
    assert status == 124
    assert "took more than 0.5 s" in output
    assert process.poll() is not None


def test_no_command_begins_when_the_faults_are_over(stage: Stage) -> None:
    stage.end()
    with pytest.raises(Skipped, match="were over"):
        stage.command(Fault(1, "scale", 0.0), "scale", timeout=10)


def test_a_fault_that_waits_for_its_turn_begins_with_it(stage: Stage) -> None:
    waiting, fault = threading.Event(), Fault(1, "scale", 0.0)

    def wait() -> None:
        waiting.set()
        with stage.turn(fault, packing=True):
            pass

    with stage.turn(Fault(2, "retune", 0.0), packing=True):
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait(10)
        assert fault.began == 0.0
        moment = time.monotonic()
    thread.join(10)
    assert fault.began >= moment


def test_a_fault_that_never_has_its_turn_is_skipped(stage: Stage) -> None:
    with stage.turn(Fault(1, "retune", 0.0), packing=True):
        stage.end()
        with pytest.raises(Skipped, match="its turn"), stage.turn(Fault(2, "retune", 0.0), packing=True):
            pass


def drive(stage: Stage, file: Path, seconds: float, **kinds: FaultFunction) -> list[Fault]:
    """One fault of each kind, a tenth of a second apart."""
    planned = tuple(PlannedFault(number, 0.1 * number, kind, number) for number, kind in enumerate(kinds, 1))
    driver = Driver(stage, Lines(file), {name: Kind(function) for name, function in kinds.items()}, lambda line: None)
    driver.run(Plan(1, seconds, planned), time.monotonic())
    driver.finish(0.2)
    return sorted(read(file, Fault), key=lambda fault: fault.number)


def strike(stage: Stage, chance: random.Random, fault: Fault) -> None:
    fault.struck, fault.what = time.monotonic(), str(chance.random())


def skip(stage: Stage, chance: random.Random, fault: Fault) -> None:
    raise Skipped("no candidate")


def fail(stage: Stage, chance: random.Random, fault: Fault) -> None:
    raise ConnectionRefusedError("the admin port")


def wait(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.over.wait(600)


def test_faults_strike_at_their_time_with_the_chance_of_the_plan(stage: Stage, tmp_path: Path) -> None:
    began = time.monotonic()
    first, second = drive(stage, tmp_path / "faults", 0.4, first=strike, second=strike)
    assert first.began - began >= 0.1
    assert second.began - began >= 0.2
    assert (first.what, second.what) == (str(random.Random(1).random()), str(random.Random(2).random()))


def test_what_cannot_happen_is_recorded_with_the_reason(stage: Stage, tmp_path: Path) -> None:
    faults = drive(stage, tmp_path / "faults", 0.4, skip=skip, fail=fail)
    assert [fault.skipped for fault in faults] == ["no candidate", "ConnectionRefusedError: the admin port"]
    assert [fault.struck for fault in faults] == [0, 0]


def test_a_fault_that_takes_long_is_ended_and_recorded(stage: Stage, tmp_path: Path) -> None:
    (fault,) = drive(stage, tmp_path / "faults", 0.3, wait=wait)
    assert 0.3 <= fault.ended - fault.began < 10


def test_the_processes_below_another_one_are_found_however_deep() -> None:
    inner = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"]
    ) as top:
        try:
            ends = time.monotonic() + 20
            while len(found := Stage.children(top.pid)) < 2:
                assert time.monotonic() < ends
                time.sleep(0.02)
        finally:
            for pid in [*Stage.children(top.pid), top.pid]:
                os.kill(pid, signal.SIGKILL)
    assert len(found) == 2 and Stage.children(top.pid) == []
