"""Crash loops: which instances are in one, what their next start waits for, and that nothing else waits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.crash_loops import CrashLoops, CrashSlot
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.registry import Registry
from cluster.messages import Registration, StartPermit, StartRequest
from cluster.telemetry.events import Events

APP = "shop.v1.eu"


class Fleet:
    """The processes of some apps, which start, register, crash and stop."""

    def __init__(self) -> None:
        self.now, self.number, self.alive = 1_000.0, 0, set[str]()
        self.events = Events()
        self.registry = Registry(lambda: None)
        recorder = EventRecorder(self.events, self.registry)
        self.loops = CrashLoops(self.registry, on_crash=recorder.crash_loop)

    def begin(self, app: str = APP, **known: Any) -> tuple[str, StartPermit]:
        """A new process asks for its permit, as the Controller handles it."""
        self.number += 1
        replica = f"{app}#{self.number}"
        self.loops.retain(app, self.alive, self.now)
        self.alive.add(replica)
        return replica, self.ask(replica, **known)

    def ask(self, replica: str, **known: Any) -> StartPermit:
        app = replica.partition("#")[0]
        agent, version, region = app.split(".")
        return self.loops.request_start(StartRequest(app, agent, version, region, replica, **known), self.now)

    def register(self, replica: str, crashes: int = 0) -> str:
        app = replica.partition("#")[0]
        agent, version, region = app.split(".")
        name = self.loops.name_of(replica)
        new = Registration(agent, version, region, app, replica, "h", 1, 1, "n", 0.0, id=name, crashes=crashes)
        record = self.registry.admit(new, self.loops.reserved(agent))
        self.loops.sync(self.now)
        return record.id

    def crash(self, replica: str, after_s: float = 1.0) -> None:
        self.now += after_s
        self.alive.discard(replica)
        self.registry.remove(replica)
        self.loops.sync(self.now)

    def life(self, app: str = APP, ran_s: float = 1.0) -> float:
        """One process starts as soon as it may and crashes `ran_s` after it registered; returns how long it waited."""
        replica, permit = self.begin(app)
        self.now += permit.wait_s
        assert self.ask(replica).wait_s == 0
        self.register(replica)
        self.crash(replica, ran_s)
        return permit.wait_s


def test_the_delay_doubles_with_each_crash_and_a_stable_run_ends_the_row() -> None:
    fleet = Fleet()
    assert [fleet.life() for _ in range(6)] == [0, 0, 5, 10, 20, 40]
    assert fleet.life(ran_s=61) == 80, "it waits before it can show that it is stable"
    assert [fleet.life(), fleet.life(), fleet.life()] == [0, 0, 5]


def test_a_process_that_dies_before_it_registers_has_crashed_as_well() -> None:
    fleet = Fleet()
    waits = []
    for _ in range(4):
        replica, permit = fleet.begin()
        waits.append(permit.wait_s)
        fleet.now += permit.wait_s
        fleet.ask(replica)
        fleet.alive.discard(replica)
    assert waits == [0, 0, 5, 10]


def test_a_process_that_reports_why_it_cannot_start_has_crashed_for_that_reason() -> None:
    fleet = Fleet()
    for _ in range(2):
        replica, _ = fleet.begin()
        fleet.loops.failed(replica, "on_start raised KeyError: 'KEY'", fleet.now)
        fleet.alive.discard(replica)
    (slot,) = fleet.loops.loops()
    assert slot.key == ("shop", "v1", "eu", "instance-1")
    assert fleet.loops.warnings(fleet.now + 2) == [
        "instance-1 of shop v1 in eu crashed 2 times in a row soon after its start (on_start raised KeyError: 'KEY'): "
        "it starts again in 3 s"
    ]


def test_other_instances_versions_and_agents_start_without_delay() -> None:
    fleet = Fleet()
    for _ in range(5):
        fleet.life()
    waiting, permit = fleet.begin()
    assert permit.wait_s == 40
    for app in (APP, "shop.v2.eu", "shop.v1.us", "other.v1.eu"):
        assert fleet.begin(app)[1] == StartPermit(0, 0)
    assert fleet.ask(waiting).wait_s == 40


def test_the_instance_keeps_its_name_while_others_start() -> None:
    fleet = Fleet()
    first = fleet.begin()[0]
    second = fleet.begin()[0]
    assert [fleet.register(first), fleet.register(second)] == ["instance-1", "instance-2"]
    fleet.crash(first)
    for _ in range(3):
        fleet.life()
    assert [slot.id for slot in fleet.loops.loops()] == ["instance-1"]
    waiting, permit = fleet.begin()
    assert fleet.register(fleet.begin()[0]) == "instance-3"
    fleet.now += permit.wait_s
    fleet.ask(waiting)
    assert fleet.register(waiting) == "instance-1"
    assert fleet.loops.loops() == []


@pytest.mark.parametrize("state", ["running", "starting", "waiting"])
def test_a_process_that_is_stopped_has_not_crashed(state: str) -> None:
    fleet = Fleet()
    if state == "waiting":
        for _ in range(3):
            fleet.life()
    replica, _ = fleet.begin()
    if state == "running":
        fleet.register(replica)
    fleet.loops.stopped(replica)
    fleet.crash(replica)
    assert fleet.loops.loops() == []
    assert fleet.begin()[1] == StartPermit(0, 0)


def test_a_draining_instance_that_ends_has_not_crashed() -> None:
    fleet = Fleet()
    for _ in range(5):
        replica, _ = fleet.begin()
        fleet.register(replica)
        fleet.registry.drain(replica, "stopping")
        fleet.loops.sync(fleet.now)
        fleet.crash(replica)
    assert fleet.begin()[1] == StartPermit(0, 0)


def test_a_waiting_process_that_is_lost_is_no_further_crash() -> None:
    fleet = Fleet()
    for _ in range(3):
        fleet.life()
    replica, permit = fleet.begin()
    assert permit == StartPermit(10, 3)
    fleet.crash(replica, after_s=4)  # its node, say
    assert fleet.begin()[1] == StartPermit(6, 3)


def test_an_operators_change_lets_a_waiting_instance_start_at_once() -> None:
    fleet = Fleet()
    for _ in range(6):
        fleet.life()
    replica, permit = fleet.begin()
    assert permit.wait_s > 60
    fleet.loops.reset()
    assert fleet.ask(replica) == StartPermit(0, 0)
    assert fleet.loops.loops() == []


def test_a_new_controller_learns_the_row_from_the_instances() -> None:
    before, after = Fleet(), Fleet()
    for _ in range(4):
        before.life()
    replica, permit = before.begin()
    assert after.ask(replica, crashes=permit.crashes, wait_s=permit.wait_s - 1) == StartPermit(19, 4)
    after = Fleet()
    after.register("shop.v1.eu#99", crashes=4)
    after.crash("shop.v1.eu#99")
    assert after.begin()[1] == StartPermit(40, 5)


def test_slots_that_are_not_desired_any_more_are_forgotten() -> None:
    fleet = Fleet()
    for _ in range(3):
        fleet.life()
    fleet.loops.keep({APP: 1})
    assert len(fleet.loops.loops()) == 1
    fleet.register(fleet.begin("shop.v2.eu")[0])
    fleet.loops.keep({APP: 0, "shop.v2.eu": 1})
    assert fleet.loops.loops() == []


def test_each_delayed_start_is_an_event() -> None:
    fleet = Fleet()
    for _ in range(3):
        fleet.life()
    events = [event for event in fleet.events.find() if event.details.get("state") == "crash-loop"]
    assert [event.message for event in events] == [
        "instance-1 crashed 2 times in a row soon after its start: it starts again in 5 s",
        "instance-1 crashed 3 times in a row soon after its start: it starts again in 10 s",
    ]
    assert events[-1].agent == "shop" and events[-1].details["delay_s"] == 10


@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "register", "crash", "stop", "wait", "reset"]), st.integers(0, 5)), max_size=60
    )
)
def test_there_are_never_more_loops_than_instances_and_no_wait_is_longer_than_the_maximum(steps: list[tuple[str, int]]) -> None:
    fleet, desired, living = Fleet(), 3, list[str]()
    for step, index in steps:
        chosen = living[index % len(living)] if living else None
        if step == "begin" and len(living) < desired:
            replica, permit = fleet.begin()
            assert 0 <= permit.wait_s <= 300
            living.append(replica)
        elif step == "register" and chosen and fleet.ask(chosen).wait_s == 0:
            fleet.register(chosen)
        elif step in ("crash", "stop") and chosen:
            if step == "stop":
                fleet.loops.stopped(chosen)
            fleet.crash(chosen, after_s=index)
            living.remove(chosen)
        elif step == "wait":
            fleet.now += 50.0 * index
        elif step == "reset":
            fleet.loops.reset()
        fleet.loops.keep({APP: desired})
        slots: list[CrashSlot] = fleet.loops.loops()
        assert len(slots) + len(fleet.registry.of("shop")) <= desired
        names = [slot.id for slot in slots] + [record.id for record in fleet.registry.of("shop")]
        assert len(set(names)) == len(names)


def test_a_version_has_crashed_as_often_as_the_worst_of_its_instances_until_that_one_runs_stably() -> None:
    fleet = Fleet()
    assert fleet.loops.crashes("shop", "v1", fleet.now) == 0
    fleet.life()
    fleet.life()
    assert fleet.loops.crashes("shop", "v1", fleet.now) == 2
    assert fleet.loops.crashes("shop", "v2", fleet.now) == 0
    replica, permit = fleet.begin()
    fleet.now += permit.wait_s
    fleet.ask(replica)
    fleet.register(replica)
    assert fleet.loops.crashes("shop", "v1", fleet.now + 59) == 2
    assert fleet.loops.crashes("shop", "v1", fleet.now + 60) == 0
