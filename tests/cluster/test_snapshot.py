"""What gateways receive: settings, members with priorities and states, and the rate rules in force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.messages import Peer, StartRequest
from cluster.snapshot import SnapshotBuilder
from policies.breaker import BreakerUpdate
from policies.rate_limit import RateRule
from tests.cluster.stand_in import StandIn

OLD, NEW = (RateRule(1, 60.0),), (RateRule(2, 60.0),)


def start(
    cluster: StandIn,
    builder: SnapshotBuilder,
    replica: str,
    version: str,
    at: float,
    rules: tuple[RateRule, ...],
    agent: str = "a",
) -> None:
    record = cluster.start_instance(agent, replica, "local", version)
    record.registration = replace(record.registration, started_at=at, rate_rules=rules)
    builder.remember_rules()


def stop(cluster: StandIn, builder: SnapshotBuilder, replica: str) -> None:
    cluster.registry.remove(replica)
    builder.remember_rules()


def test_the_rules_are_those_of_the_newest_version_and_stay_in_force_while_nothing_runs(tmp_path: Path) -> None:
    cluster = StandIn(tmp_path, {"a": {}, "b": {}})
    builder = SnapshotBuilder(cluster.view, "secret")
    start(cluster, builder, "other", "v3", 9.0, (), agent="b")
    start(cluster, builder, "x", "v1", 1.0, OLD)
    start(cluster, builder, "y", "v2", 2.0, NEW)
    start(cluster, builder, "z", "v1", 3.0, OLD)  # an instance of the old version that was restarted
    assert builder.rules_of("a") == NEW and builder.rules_of("b") == builder.rules_of("unknown") == ()
    stop(cluster, builder, "y")
    assert builder.rules_of("a") == OLD
    stop(cluster, builder, "x")
    stop(cluster, builder, "z")
    assert builder.build(("k",), 0.0).agents["a"].rate_rules == OLD, "the replacements will bring them again"


def test_rules_of_instances_that_were_restored_are_remembered_too(tmp_path: Path) -> None:
    cluster = StandIn(tmp_path, {"a": {}})
    record = cluster.start_instance("a", "x", "local")
    record.registration = replace(record.registration, rate_rules=OLD)
    builder = SnapshotBuilder(cluster.view, "secret")
    stop(cluster, builder, "x")
    assert builder.rules_of("a") == OLD


def test_a_snapshot_has_every_agents_members_with_priority_and_state(tmp_path: Path) -> None:
    cluster = StandIn(tmp_path, {"a": {"regions": {"eu": {"instances": 1, "priority": 2}}}, "b": {}})
    cluster.start_instance("a", "x", "eu")
    snapshot = SnapshotBuilder(cluster.view, "secret").build(("k",), 0.0)
    assert (snapshot.version, snapshot.key, snapshot.session_keys) == (cluster.gateways.version, "secret", ("k",))
    (member,) = snapshot.agents["a"].members
    assert (member.id, member.region, member.priority, member.state) == ("instance-1", "eu", 2, "healthy")
    share = snapshot.agents["a"].versions
    assert share is not None and share.stable == "v1"
    assert snapshot.agents["b"].members == ()


@pytest.mark.parametrize(
    ("block", "by_code", "expected"),
    [({}, True, True), ({}, False, False), ({"enabled": False}, True, False), ({"enabled": True}, False, True)],
)
def test_session_affinity_is_as_the_file_sets_it_else_as_the_code_does(
    tmp_path: Path, block: dict[str, bool], by_code: bool, expected: bool
) -> None:
    cluster = StandIn(tmp_path, {"a": {"loadBalancing": {"sessionAffinity": block}}})
    record = cluster.start_instance("a", "x", "local")
    record.registration = replace(record.registration, session_affinity=by_code)
    assert SnapshotBuilder(cluster.view, "secret").build((), 0.0).agents["a"].session_affinity is expected


def test_a_snapshot_has_breakers_as_of_now_the_peers_and_what_is_desired(tmp_path: Path) -> None:
    cluster = StandIn(tmp_path, {"a": {}})
    cluster.start_instance("a", "x", "local")
    cluster.view.breakers.observe("g1", {"x": BreakerUpdate("open", 30.0)}, 100.0)
    hello, _, seen = cluster.gateways.present["g1"]
    cluster.gateways.observe(replace(hello, host="10.0.0.1", port=7001), seen)
    snapshot = SnapshotBuilder(cluster.view, "secret").build((), 110.0)
    assert snapshot.circuits["x"].news == BreakerUpdate("open", 20.0)
    assert snapshot.peers == (Peer("g1", "10.0.0.1", 7001),)
    assert snapshot.desired == cluster.rollouts.to_keep() != {}


SCALED = {"scaling": {"minInstances": 0, "maxInstances": 2}}


@pytest.mark.parametrize(
    ("block", "started", "problem", "expected"),
    [
        ({**SCALED, "regions": {"local": {"instances": 0}}}, 0, "", (True, True)),
        ({"regions": {"local": {"instances": 0}}}, 0, "", (True, False)),  # only an operator starts one
        ({"regions": {"local": {"instances": 1}}}, 0, "", (False, True)),
        ({"regions": {"local": {"instances": 1}}}, 0, "a.v1.local", (False, False)),  # it cannot start
        ({"regions": {"local": {"instances": 1}}}, 0, "another.v1.local", (False, True)),
        ({"regions": {"local": {"instances": 1}}}, 1, "", (False, False)),  # it is there
    ],
)
def test_an_agent_may_have_none_and_one_may_come(
    tmp_path: Path, block: dict[str, Any], started: int, problem: str, expected: tuple[bool, bool]
) -> None:
    cluster = StandIn(tmp_path, {"a": block})
    for number in range(started):
        cluster.start_instance("a", str(number), "local")
    if problem:
        cluster.view.placement.problems[problem] = "it cannot start"  # type: ignore[index]
    view = SnapshotBuilder(cluster.view, "secret").build(("k",), 0.0).agents["a"]
    assert (view.may_be_none, view.coming) == expected


def test_no_request_waits_for_an_agent_whose_only_instance_is_in_a_crash_loop(tmp_path: Path) -> None:
    cluster = StandIn(tmp_path, {"a": {"regions": {"local": {"instances": 1}}}})
    builder = SnapshotBuilder(cluster.view, "secret")
    for number, coming in enumerate([True, True, False, False]):
        assert builder.build(("k",), 0.0).agents["a"].coming is coming
        now = 100.0 * number
        cluster.crash_loops.request_start(StartRequest("a.v1.local", "a", "v1", "local", str(number)), now)
        cluster.crash_loops.failed(str(number), "", now)
