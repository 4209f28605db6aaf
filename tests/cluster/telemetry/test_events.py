"""The log of events: bounded, in order, resumable; and what the recorder derives from two states of the cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.config import GatewaySettings, Settings, parse
from cluster.fleet.event_recorder import EventRecorder
from cluster.fleet.registry import Registry
from cluster.messages import GatewayHello, Registration
from cluster.telemetry.events import Event, Events
from policies.sessions.moved import CAUSES, Cause


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def messages(events: Events, **wanted: Any) -> list[str]:
    return [event.message for event in events.find(**wanted)]


def test_only_the_newest_are_kept() -> None:
    events = Events(kept=3)
    for number in range(5):
        events.add("scale", str(number))
    assert messages(events) == ["2", "3", "4"]


def test_ids_grow_even_when_the_clock_stands_still_and_across_a_restart() -> None:
    clock = Clock()
    before, after = Events(clock=clock), Events(clock=clock)
    first, second = before.add("limit", "one"), before.add("limit", "two")
    assert second.id == first.id + 1
    clock.now += 1
    assert after.add("limit", "three").id > second.id


def test_they_are_found_by_agent_kind_and_id() -> None:
    events = Events()
    one = events.add("scale", "a grows", agent="a")
    events.add("config", "a changes", agent="a", changes={"x": 1})
    events.add("scale", "b grows", agent="b")
    assert messages(events, agent="a") == ["a grows", "a changes"]
    assert messages(events, kind="scale") == ["a grows", "b grows"]
    assert messages(events, after=one.id) == ["a changes", "b grows"]
    assert messages(events, limit=1) == ["b grows"]
    assert messages(events, agent="a", limit=1) == ["a changes"]
    assert events.find(kind="config")[0].as_json()["details"] == {"changes": {"x": 1}}


def test_it_states_how_full_it_is() -> None:
    events = Events(kept=2, clock=lambda: 5.0)
    for _ in range(3):
        events.add("scale", "one more")
    assert repr(events) == "<Events: 2 of at most 2, last id 5002>"


def test_an_unknown_kind_is_rejected() -> None:
    with pytest.raises(ValueError, match="not an event kind"):
        Events().add("oops", "")


async def test_who_waits_is_woken_by_the_next_one_and_not_by_an_old_one() -> None:
    events = Events()
    old = events.add("scale", "old")
    assert await events.wait(old.id - 1, 0) is True
    assert await events.wait(old.id, 0.01) is False
    waiting = asyncio.create_task(events.wait(old.id, 30))
    await asyncio.sleep(0)
    events.add("scale", "new")
    assert await waiting is True


# --- the recorder ---------------------------------------------------------------------------------------------------


def settings(**agents: dict[str, Any]) -> Settings:
    return parse({"agents": {name: {"agent": "m:agent", **block} for name, block in agents.items()}}, Path("/"))


def registration(name: str, region: str = "us-east-1") -> Registration:
    return Registration("a", "v1", region, f"a.v1.{region}", name, "127.0.0.1", 1, 1, "node", 0.0)


class Watched:
    """A registry that passes every change to a recorder, as the Controller does."""

    def __init__(self, wanted: Settings | None = None) -> None:
        self.events = Events()
        self.registry = Registry(self.changed)
        self.recorder = EventRecorder(self.events, self.registry)
        self.settings = wanted or settings(a={})

    def changed(self) -> None:
        self.recorder.instances(self.registry)
        self.recorder.levels(self.settings, self.registry)

    def up(self, name: str, region: str = "us-east-1") -> None:
        self.registry.admit(registration(name, region))
        self.registry.observe(name)
        self.registry.judge(name, True, "", 1.0)

    def recorded(self) -> list[tuple[str, str]]:
        return [(event.kind, event.message) for event in self.events.find()]


def test_the_life_of_an_instance_is_recorded_with_reasons() -> None:
    seen = Watched()
    seen.up("r1")
    seen.registry.judge("r1", False, "database", 2.0)
    seen.registry.judge("r1", True, "", 3.0)
    seen.registry.eject("r1", "no response for 5 s")
    seen.registry.drain("r1", "stopping")
    seen.registry.remove("r1")
    assert seen.recorded() == [
        ("instance", "instance-1 is starting in us-east-1"),
        ("instance", "instance-1 started in us-east-1"),
        ("health", "instance-1 is unhealthy: database"),
        ("health", "instance-1 is healthy again"),
        ("health", "instance-1 is unresponsive: no response for 5 s"),
        ("instance", "instance-1 is draining: stopping"),
        ("instance", "instance-1 stopped"),
    ]
    names = {(event.agent, event.instance, event.version, event.region) for event in seen.events.find()}
    assert names == {("a", "instance-1", "v1", "us-east-1")}


def test_an_instance_that_did_not_drain_stopped_unexpectedly() -> None:
    seen = Watched()
    seen.up("r1")
    seen.registry.remove("r1")
    assert seen.recorded()[-1] == ("instance", "instance-1 stopped unexpectedly: its process no longer responds")


def test_instances_known_before_a_restart_cause_no_events() -> None:
    before = Watched()
    before.up("r1")
    after = Watched()
    after.registry.restore(before.registry.dump())
    after.recorder = EventRecorder(after.events, after.registry)
    after.changed()
    assert after.recorded() == []


def test_spillover_to_the_next_priority_and_its_end_are_events() -> None:
    regions = {"us-east-1": {"instances": 2, "priority": 1}, "eu-west-1": {"instances": 2, "priority": 2}}
    seen = Watched(settings(a={"regions": regions}))
    for name, region in (("r1", "us-east-1"), ("r2", "us-east-1"), ("r3", "eu-west-1"), ("r4", "eu-west-1")):
        seen.up(name, region)
    assert seen.events.find(kind="region") == []
    seen.registry.judge("r1", False, "ill", 1.0)
    seen.registry.judge("r1", True, "", 1.0)
    assert messages(seen.events, kind="region") == [
        "a: traffic by priority: 70 % to us-east-1, 30 % to eu-west-1",
        "a: traffic by priority: 100 % to us-east-1",
    ]


def test_a_gateway_that_starts_and_stops_is_recorded() -> None:
    events = Events()
    recorder = EventRecorder(events, [])
    hello = GatewayHello("g", "gateway.us", GatewaySettings("us", port=8000), "node", 42)
    recorder.gateway(hello)
    recorder.gateway(hello, "stopped")
    assert messages(events, kind="gateway") == [
        "the gateway on 127.0.0.1:8000 (pid 42) started",
        "the gateway on 127.0.0.1:8000 (pid 42) stopped",
    ]


def applied(before: Settings, after: Settings) -> list[Event]:
    events = Events()
    EventRecorder(events, []).applied(before, after)
    return events.find(kind="config")


def test_a_new_file_is_one_sentence_with_paths_and_values() -> None:
    (event,) = applied(settings(a={}, b={}), settings(a={"loadBalancing": {"strategy": "least-connections"}}, b={}))
    assert event.message.startswith("a: loadBalancing.strategy changed from ")
    assert event.details["changes"]["loadBalancing.strategy"][1] == "least-connections"


def test_added_and_removed_agents_are_events_and_unchanged_ones_are_not() -> None:
    assert [e.message for e in applied(settings(a={}), settings(a={}, b={}))] == ["b: added"]
    assert [e.message for e in applied(settings(a={}, b={}), settings(a={}))] == ["b: removed"]
    assert applied(settings(a={}), settings(a={})) == []


def test_a_limit_is_an_event_when_it_is_reached_and_when_that_is_over() -> None:
    events = Events()
    recorder = EventRecorder(events, [])
    for second, total in enumerate([0, 3, 3, 7, *[7] * 20, 8]):
        recorder.limit("a", "rate-limited", total, float(second))
    assert messages(events) == [
        "a: requests are rate-limited",
        "a: requests are no longer rate-limited; 7 requests were rate-limited within 2 s",
        "a: requests are rate-limited",
    ]
    assert [event.details.get("count") for event in events.find()] == [None, 7, None]


def test_sessions_that_move_together_are_one_event() -> None:
    events = Events()
    recorder = EventRecorder(events, [])
    for second, total in enumerate([0, 3, 3, 7, *[7] * 12, *[8] * 12]):
        recorder.sessions_moved("a", "drained", total, float(second))
    assert messages(events) == [
        "a: 7 sessions moved to other instances: their instance was drained",
        "a: 1 session moved to another instance: its instance was drained",
    ]
    assert [event.details for event in events.find()] == [{"cause": "drained", "count": 7}, {"cause": "drained", "count": 1}]


def test_a_long_series_of_moved_sessions_is_an_event_a_minute() -> None:
    events = Events()
    recorder = EventRecorder(events, [])
    for second in range(130):
        recorder.sessions_moved("a", "died", second, float(second))
    assert [event.details["count"] for event in events.find()] == [62, 62]


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_of_a_moved_session_has_its_sentence(cause: Cause) -> None:
    events = Events()
    recorder = EventRecorder(events, [])
    for second in (0.0, 11.0):
        recorder.sessions_moved("a", cause, 2, second)
    (message,) = messages(events, kind="session", agent="a")
    assert message.startswith("a: 2 sessions moved to other instances: their instance ")


def test_a_reader_whose_last_id_is_of_a_time_to_come_gets_every_event() -> None:
    """The clock was set back, and the Controller restarted."""
    clock = Clock()
    last = Events(clock=clock).add("limit", "before").id
    clock.now -= 3600
    after = Events(clock=clock)
    after.add("limit", "one")
    assert messages(after, after=last) == ["one"]
    assert messages(after, after=after.last) == []
