"""Faults of disk, network and clock: what they record, that they are undone, and that they are skipped where they cannot be."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.campaign.cluster import HEAD, REGIONS
from tests.campaign.faults.clock import STEPS_S, clock_step
from tests.campaign.faults.disk import hanging_state, slow_state, unwritable_state
from tests.campaign.faults.network import cut_region, delay_region, one_way
from tests.campaign.record import Fault, InstanceRow
from tests.campaign.stage import Skipped
from tests.integration.network import CLEAR, LOST, Way

SEEDS = range(20)


class FakeNetwork:
    def __init__(self) -> None:
        self.shaped: list[tuple[str, str, Way]] = []

    def shape(self, source: str, target: str, way: Way) -> None:
        self.shaped.append((source, target, way))

    @property
    def ways(self) -> dict[tuple[str, str], Way]:
        """As it is now."""
        return {(source, target): way for source, target, way in self.shaped}


class FakeDisk:
    def __init__(self, lacks: str = "") -> None:
        self.lacks, self.states, self.frozen = lacks, list[str](), list[float]()

    def why_not(self, state: str) -> str:
        return self.lacks

    @contextmanager
    def _state(self, name: str) -> Any:
        self.states.append(name)
        yield
        self.states.append(f"not {name}")

    def full(self) -> Any:
        return self._state("full")

    def read_only(self) -> Any:
        return self._state("read-only")

    def immutable(self) -> Any:
        return self._state("immutable")

    def freeze(self, over: threading.Event, begun: Any, *seconds: float) -> None:
        begun()
        self.frozen += seconds


class FakeClocks:
    def __init__(self, processes: int = 4) -> None:
        self.processes, self.steps = processes, list[tuple[float, Any]]()

    def put_ahead(self, seconds: float, pids: Any = None) -> int:
        self.steps.append((seconds, pids))
        return self.processes if pids is None else len(pids)


def row(pid: int, region: str) -> InstanceRow:
    return InstanceRow(f"instance-{pid}", pid, "healthy", "closed", "v1", region, 0, 0)


@dataclass
class FakeStage:
    """The faults are over from the beginning: none waits."""

    network: FakeNetwork | None = field(default_factory=FakeNetwork)
    disk: FakeDisk | None = field(default_factory=FakeDisk)
    clocks: FakeClocks | None = field(default_factory=FakeClocks)

    def __post_init__(self) -> None:
        self.over = threading.Event()
        self.over.set()
        self.cluster = SimpleNamespace(network=self.network, disk=self.disk, clocks=self.clocks, gateways=lambda: [90, 91])
        self.sampler = SimpleNamespace(latest=[row(number, region) for number, region in enumerate(REGIONS, 1)])

    def controller(self) -> int:
        return 99


def strike(function: Any, stage: FakeStage, seed: int = 1) -> Fault:
    fault = Fault(1, function.__name__, 0.0)
    function(stage, random.Random(seed), fault)
    assert fault.struck > 0
    return fault


@pytest.mark.parametrize("function", [cut_region, one_way, delay_region])
def test_the_network_is_as_before_after_each_of_its_faults_and_the_head_is_never_cut_off_from_itself(function: Any) -> None:
    for seed in SEEDS:
        stage = FakeStage()
        fault = strike(function, stage, seed)
        assert stage.network is not None
        assert fault.region in REGIONS[1:]
        assert set(stage.network.ways.values()) == {CLEAR}
        assert {frozenset(pair) for pair in stage.network.ways} == {frozenset((HEAD, fault.region))}


def test_a_cut_loses_both_directions_and_a_one_way_cut_one_of_them() -> None:
    stage = FakeStage()
    strike(cut_region, stage)
    assert stage.network is not None
    assert [way for _, _, way in stage.network.shaped] == [LOST, LOST, CLEAR, CLEAR]
    directions = set()
    for seed in SEEDS:
        stage = FakeStage()
        fault = strike(one_way, stage, seed)
        assert stage.network is not None
        (source, target, way), _ = stage.network.shaped
        assert way == LOST
        assert fault.what == ("to it" if target == fault.region else "from it")
        directions.add(source == HEAD)
    assert directions == {True, False}


def test_a_delay_loses_nothing() -> None:
    for seed in SEEDS:
        stage = FakeStage()
        strike(delay_region, stage, seed)
        assert stage.network is not None
        late = [way for _, _, way in stage.network.shaped if way != CLEAR]
        assert len(late) == 2
        assert all(not way.lost and 50 <= way.delay_ms <= 200 for way in late)


def test_the_disk_is_full_read_only_and_immutable_by_chance_and_writable_after_each() -> None:
    seen = set()
    for seed in SEEDS:
        stage = FakeStage()
        fault = strike(unwritable_state, stage, seed)
        assert stage.disk is not None
        assert stage.disk.states == [fault.what, f"not {fault.what}"]
        seen.add(fault.what)
    assert seen == {"full", "read-only", "immutable"}


def test_a_disk_hangs_for_seconds_once_and_is_slow_many_times() -> None:
    stage = FakeStage()
    strike(hanging_state, stage)
    assert stage.disk is not None
    assert 3 <= stage.disk.frozen[0] <= 7
    stage.disk.frozen.clear()
    strike(slow_state, stage)
    held_s, free_s, times = stage.disk.frozen
    assert held_s < 1 and times >= 4 and 5 < times * (held_s + free_s) < 16


def test_the_clocks_are_set_right_again_everywhere_or_on_the_host_of_one_region() -> None:
    hosts = {"": None, HEAD: [1, 90, 91, 99], REGIONS[1]: [2], REGIONS[2]: [3]}
    seen = set()
    for seed in range(60):
        stage = FakeStage()
        fault = strike(clock_step, stage, seed)
        assert stage.clocks is not None
        (step, pids), back = stage.clocks.steps
        assert step in STEPS_S and back == (0.0, pids)
        assert pids == hosts[fault.region]
        seen.add(fault.region)
    assert seen == set(hosts)


@pytest.mark.parametrize(
    "function", [cut_region, one_way, delay_region, unwritable_state, hanging_state, slow_state, clock_step]
)
def test_what_the_run_does_not_have_is_skipped_with_the_reason(function: Any) -> None:
    with pytest.raises(Skipped, match=r"\w+ \w+"):
        strike(function, FakeStage(network=None, disk=None, clocks=None))


def test_what_the_machine_lacks_is_skipped_with_the_reason() -> None:
    with pytest.raises(Skipped, match="needs root"):
        strike(hanging_state, FakeStage(disk=FakeDisk(lacks="needs root")))
    with pytest.raises(Skipped, match="no process"):
        strike(clock_step, FakeStage(clocks=FakeClocks(processes=0)), seed=everywhere())


def everywhere() -> int:
    """A seed with which all clocks are stepped."""
    return next(seed for seed in range(60) if not strike(clock_step, FakeStage(), seed).region)
