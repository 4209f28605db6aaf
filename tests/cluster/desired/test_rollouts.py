"""Versions that come and go: the rules, and a Controller that is killed anywhere between two steps."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.controller import Controller
from cluster.desired import rollout_transitions as transitions
from cluster.desired.failpoints import POINTS
from cluster.desired.packages import CannotPack, Package, pack
from cluster.desired.rollout_manager import DeployRequest
from cluster.desired.rollout_transitions import (
    Rollout,
    RolloutRejected,
    Version,
    advance,
    apply_file,
    bring_in,
    instances_for,
    next_name,
    promote,
    take_back,
    with_deadline_by,
)
from cluster.messages import InstanceSpec
from tests.cluster.desired.world import World

V1, V2 = Version("v1", {"agent": "m:a"}, "one"), Version("v2", {"agent": "m:a"}, "two")
ALONE = Rollout(V1, "v1")


def coming(percent: float = 10, now: float = 0.0) -> Rollout:
    return bring_in(ALONE, V2, percent, {}, now)


def deadline(rollout: Rollout) -> float:
    assert rollout.canary is not None
    return rollout.canary.deadline_at


def running(percent: float = 10) -> Rollout:
    return advance(coming(percent), True, "", 1.0)


# --- the rules ----------------------------------------------------------------------------------------------------------


def test_a_canary_has_nothing_until_it_has_its_instances() -> None:
    made = coming(10)
    assert repr(made) == "<Rollout: v1, v2 0 %, to 10 %>"
    assert advance(made, False, "0 of 1 instances healthy in us", 60.0) == made
    assert repr(advance(made, True, "", 60.0)) == "<Rollout: v1, v2 10 %>"


def test_a_deadline_is_no_later_than_it_could_be_when_the_clock_was_set_back_before_a_restart() -> None:
    made = coming(10, now=7200.0)
    assert deadline(with_deadline_by(made, 3600.0)) == 3600.0 + 120.0
    assert with_deadline_by(made, 7250.0) == made, "what is possible stays"
    assert with_deadline_by(ALONE, 3600.0) == ALONE


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_changes_no_deadline_of_a_running_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    world, now = World(tmp_path), time.time
    controller = Controller(world.args, str(tmp_path), world.serve)  # type: ignore[arg-type]
    before = controller.versions._clock()
    monkeypatch.setattr(time, "time", lambda: now() + step_s)
    assert 0 <= controller.versions._clock() - before < 120


def test_one_that_is_not_healthy_in_time_is_taken_back_and_says_why() -> None:
    late = advance(coming(10), False, "0 of 1 instances healthy in us", 121.0)
    assert late.canary is None and late.stable == V1
    assert late.last == "v2 was rolled back: its instances were not healthy within 120 s (0 of 1 instances healthy in us)"


def test_more_is_given_when_the_instances_for_it_are_there_and_less_at_once() -> None:
    more = promote(running(10), 50, 5.0)
    assert repr(more) == "<Rollout: v1, v2 10 %, to 50 %>"
    assert repr(advance(more, True, "", 6.0)) == "<Rollout: v1, v2 50 %>"
    assert repr(promote(advance(more, True, "", 6.0), 25, 7.0)) == "<Rollout: v1, v2 25 %>"


def test_a_share_for_which_there_are_not_the_instances_in_time_leaves_the_old_one() -> None:
    stuck = advance(promote(running(10), 50, 5.0), False, "1 of 2 instances healthy in us", 126.0)
    assert stuck.canary is not None and (stuck.canary.percent, stuck.canary.target) == (10, 10)
    assert stuck.canary.note == "stays at 10 % of the traffic: not ready for 50 % within 120 s (1 of 2 instances healthy in us)"


def test_at_100_it_is_the_stable_one_and_sessions_of_the_old_one_may_finish() -> None:
    done = advance(promote(running(10), 100, 5.0), True, "", 6.0)
    assert (done.stable, done.canary, done.leaving) == (V2, None, ("v1",))


def test_back_is_at_once_from_anywhere() -> None:
    for state in (coming(10), running(10), promote(running(10), 100, 5.0), coming(100)):
        back = take_back(state, "by an operator")
        assert (back.stable, back.canary, back.leaving) == (V1, None, ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda: bring_in(coming(), V2, 10, {}, 1.0),
            "another change is in progress: v2 will receive 10 % of the traffic as soon as it is healthy",
        ),
        (
            lambda: bring_in(coming(100), V2, 10, {}, 1.0),
            "another change is in progress: v2 will replace the stable version as soon as it is healthy",
        ),
        (lambda: bring_in(running(), V2, 10, {}, 1.0), "v2 receives 10 % of the traffic; promote it or roll it back first"),
        (lambda: promote(coming(), 50, 1.0), "another change is in progress: v2"),
        (lambda: promote(promote(running(), 50, 1.0), 60, 2.0), "another change is in progress: v2 will receive 50 %"),
        (lambda: promote(ALONE, 50, 1.0), "there is no canary: v1 receives all traffic"),
        (
            lambda: promote(running(), 0, 1.0),
            "0 is not a percentage above 0 and up to 100; use `swiftclaw rollback` to remove the canary",
        ),
        (lambda: take_back(ALONE, ""), "there is nothing to roll back: v1 receives all traffic"),
        (lambda: transitions.pause(ALONE, True), "there is no canary"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(change: Callable[[], Rollout], said: str) -> None:
    with pytest.raises(RolloutRejected) as refused:
        change()
    assert str(refused.value).startswith(said)


def test_what_is_remembered_is_what_was() -> None:
    for state in (ALONE, coming(), running(), advance(promote(running(), 100, 5.0), True, "", 6.0)):
        assert transitions.restored(json.loads(json.dumps(transitions.dump(state)))) == state


def test_another_version_in_the_file_comes_in_and_goes_again_with_it() -> None:
    old, new = {"agent": "m:a"}, {"agent": "m:a", "version": "v2"}
    made = apply_file(ALONE, old, new, 0.0)
    assert made.canary is not None and (made.canary.version.name, made.canary.target) == ("v2", 100)
    assert apply_file(made, new, old, 1.0).canary is None, "the file takes it back"
    done = advance(made, True, "", 1.0)
    assert done.stable.name == "v2" and apply_file(done, new, new, 2.0) == done


def test_a_file_that_says_nothing_new_leaves_a_deployed_version_alone() -> None:
    block = {"agent": "m:a"}
    for state in (running(), advance(promote(running(), 100, 5.0), True, "", 6.0)):
        assert apply_file(state, block, block, 9.0) == state


def test_a_version_in_the_file_that_failed_is_tried_again_by_the_next_up() -> None:
    old, new = {"agent": "m:a"}, {"agent": "m:a", "version": "v2"}
    failed = advance(apply_file(ALONE, old, new, 0.0), False, "nobody", 121.0)
    assert failed.canary is None
    again = apply_file(failed, new, new, 200.0)
    assert again.canary is not None and again.canary.version.name == "v2"


def test_another_version_in_the_file_waits_for_a_canary() -> None:
    with pytest.raises(
        RolloutRejected, match="version: cannot start v3 while v2 receives 10 % of the traffic; promote or roll back v2 first"
    ):
        apply_file(running(), {"agent": "m:a"}, {"agent": "m:a", "version": "v3"}, 2.0)


def test_names_go_on() -> None:
    assert [next_name(known) for known in (["v1"], ["v1", "v9"], ["blue"], [])] == ["v2", "v10", "v2", "v2"]


@given(instances=st.integers(0, 200), percent=st.floats(0.01, 100), more=st.floats(0, 1))
def test_instances_for_a_share_are_enough_and_never_fewer_for_more(instances: int, percent: float, more: float) -> None:
    found = instances_for(percent, instances)
    assert found >= instances * percent / 100 - 1e-6 and found <= instances
    assert bool(found) == bool(instances)
    assert instances_for(percent + more * (100 - percent), instances) >= found


# --- a Controller with a Serve that does what it is told -----------------------------------------------------------------


def test_the_first_version_is_frozen_before_it_is_started(world: World) -> None:
    digest = world.rollout.stable.package
    assert digest and world.controller.versions.packages.has(digest)
    packages = {spec.start.package for spec in world.serve.apps.values() if isinstance(spec.start, InstanceSpec)}
    assert packages == {digest}


def test_code_that_cannot_be_frozen_runs_from_its_folder_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Package:
        raise CannotPack("it is too large")

    monkeypatch.setattr("cluster.desired.rollout_manager.pack", refuse)
    world = World(tmp_path)
    world.rounds()
    assert {spec.start.package for spec in world.serve.apps.values() if isinstance(spec.start, InstanceSpec)} == {""}
    (warning,) = [said for said in world.controller.view.placement.warnings if "packaged" in said]
    assert warning.startswith("a: the code could not be packaged") and warning.endswith("it is too large")


def test_a_version_of_the_file_takes_over_like_one_that_was_deployed(world: World) -> None:
    def up(version: str) -> None:
        block = {**world.args["agents"]["a"], "version": version}
        world.controller.versions.apply_file({**world.args, "agents": {"a": block}}, str(world.folder))
        world.controller._reconciler.wake()
        world.rounds(6)

    up("blue")
    assert repr(world.rollout) == "<Rollout: blue>" and world.serve.versions() == {"blue"}
    world.ill = {"green"}
    up("green")
    world.now += 121
    world.rounds(6)
    assert repr(world.rollout) == "<Rollout: blue>" and "green was rolled back" in world.rollout.last
    world.ill.clear()
    up("green")
    assert repr(world.rollout) == "<Rollout: green>" and world.serve.versions() == {"green"}


def test_a_canary_runs_beside_with_its_own_code_and_takes_over_at_100(world: World) -> None:
    assert world.deploy(10) == ("canary", "v2")
    world.rounds()
    assert {name: spec.replicas for name, spec in world.serve.apps.items() if name.startswith("a.")} == {
        "a.v1.us": 3, "a.v1.eu": 1, "a.v2.us": 1, "a.v2.eu": 1,
    }  # fmt: skip
    starts = [spec.start for spec in world.serve.apps.values()]
    codes = {start.version: start.package for start in starts if isinstance(start, InstanceSpec)}
    assert codes["v1"] != codes["v2"]
    assert repr(world.rollout) == "<Rollout: v1, v2 10 %>"
    world.run(world.controller.promote("a", 100))
    world.rounds()
    assert world.serve.versions() == {"v2"}
    assert {app: spec.replicas for app, spec in world.serve.apps.items() if app[0] == "a"} == {"a.v2.us": 3, "a.v2.eu": 1}
    assert world.controller.view.settings.agents["a"].version == "v2"


def test_unchanged_code_and_settings_are_no_new_version(world: World) -> None:
    assert world.deploy(10, code="two") == ("canary", "v2")
    assert world.deploy(10, code="two") == ("nothing", "v2")
    for percent in (25, 100):
        with pytest.raises(RolloutRejected, match=rf"already runs this code.*swiftclaw promote AGENT --canary {percent}"):
            world.deploy(percent, code="two")
    (world.folder / "shop.py").write_text("agent = 1")
    package = pack(world.folder, skip=[world.folder / "state"])
    assert world.run(world.controller.deploy("a", DeployRequest(world.args["agents"]["a"], package.digest))) == (
        "nothing",
        "v1",
    )


def test_a_canary_of_unchanged_code_is_a_version_of_its_own_and_goes_all_the_way(world: World) -> None:
    world.rounds()
    code = (world.folder / "shop.py").read_text()
    package = world.rollout.stable.package
    assert package
    wish = DeployRequest(world.args["agents"]["a"], package, 10)
    assert world.run(world.controller.deploy("a", wish)) == ("canary", "v2")
    world.rounds()
    assert world.run(world.controller.deploy("a", wish)) == ("nothing", "v2"), "a repeated command starts no further one"
    for percent in (25, 50, 100):
        assert world.run(world.controller.promote("a", percent)) == "v2"
        world.rounds()
    assert repr(world.rollout) == "<Rollout: v2>" and world.serve.versions() == {"v2"}
    assert (world.folder / "shop.py").read_text() == code
    full = DeployRequest(world.args["agents"]["a"], package)
    assert world.run(world.controller.deploy("a", full)) == ("nothing", "v2"), "without --canary, unchanged code is in place"


def test_code_that_was_rolled_back_can_be_deployed_again_under_a_new_name(world: World) -> None:
    assert world.deploy(10, code="two") == ("canary", "v2")
    world.rounds()
    world.run(world.controller.rollback("a"))
    world.rounds()
    assert world.deploy(10, code="two") == ("canary", "v3")


def test_other_settings_of_the_agent_are_applied_without_a_new_version(world: World) -> None:
    package = pack(world.folder, skip=[world.folder / "state"])
    block = {**world.args["agents"]["a"], "loadBalancing": {"strategy": "least-connections"}}
    starts = list(world.serve.starts)
    assert world.run(world.controller.deploy("a", DeployRequest(block, package.digest))) == ("settings", "v1")
    world.rounds()
    assert world.controller.view.settings.agents["a"].load_balancing.strategy == "least-connections"
    assert world.serve.starts == starts


def test_settings_come_with_their_version_when_it_is_stable_and_regions_stay(world: World) -> None:
    block = {**world.args["agents"]["a"], "loadBalancing": {"strategy": "least-connections"}, "regions": {"us": {}}}
    (world.folder / "shop.py").write_text("agent = 'new'")
    package = pack(world.folder, skip=[world.folder / "state"])
    world.controller.versions.packages.put(package)
    world.run(world.controller.deploy("a", DeployRequest(block, package.digest, 10)))
    world.rounds()
    assert world.controller.view.settings.agents["a"].load_balancing.strategy == "round-robin"
    world.run(world.controller.promote("a", 100))
    world.rounds()
    after = world.controller.view.settings.agents["a"]
    assert after.load_balancing.strategy == "least-connections"
    assert {name: region.instances for name, region in after.regions.items()} == {"us": 3, "eu": 1}


def test_a_region_that_comes_or_goes_touches_no_other(world: World) -> None:
    package = pack(world.folder, skip=[world.folder / "state"])
    starts = list(world.serve.starts)

    def deploy(*regions: str) -> None:
        world.run(world.controller.deploy("a", DeployRequest(world.args["agents"]["a"], package.digest, regions=regions)))
        world.rounds()

    deploy("us", "eu", "ap")
    assert world.serve.starts[len(starts) :] == ["a.v1.ap"] and not world.serve.deleted
    deploy("us", "ap")
    assert world.serve.deleted == ["a.v1.eu"] and len(world.serve.starts) == len(starts) + 1


def test_one_that_never_gets_well_never_gets_traffic_and_goes(world: World) -> None:
    world.ill = {"v2"}
    world.deploy(10)
    world.rounds()
    assert world.controller.versions.shares()["a"].canary is None and "v2" in world.serve.versions()
    world.now += 121
    world.rounds()
    assert world.serve.versions() == {"v1"}
    said = [event.message for event in world.controller.events.find(kind="rollout")]
    missing = "0 of 1 instances healthy in us; 0 of 1 instances healthy in eu"
    assert f"a: v2 was rolled back: its instances were not healthy within 120 s ({missing})" in said


def test_a_new_deploy_has_another_name_than_the_one_that_was_rolled_back(world: World) -> None:
    world.deploy(10)
    world.rounds()
    world.run(world.controller.rollback("a"))
    world.rounds()
    assert world.serve.versions() == {"v1"}
    assert world.deploy(10, code="three") == ("canary", "v3")


def test_serve_is_asked_only_while_something_is_under_way_or_somebody_waits(world: World) -> None:
    world.rounds()
    world.serve.asked = 0
    world.rounds()
    assert world.serve.asked == 0

    async def one_more() -> None:
        going_on = asyncio.create_task(world.controller._reconciler.run_for_ever())
        await world.controller._reconciler.round()
        going_on.cancel()

    world.run(one_more())
    assert world.serve.asked == 1
    world.deploy()
    world.rounds()
    assert world.serve.asked == 2


def test_two_operators_at_once_the_second_is_told(world: World) -> None:
    world.deploy(10)
    with pytest.raises(RolloutRejected, match="another change is in progress: v2 will receive 10 %"):
        world.deploy(20, code="three")
    with pytest.raises(RolloutRejected, match="another change is in progress"):
        world.run(world.controller.promote("a", 50))


def test_an_app_of_a_lost_state_folder_goes_on_with_what_the_gateways_know(world: World) -> None:
    world.deploy(10)
    world.rounds()
    before, kept = world.rollout, json.loads(json.dumps(world.controller.versions.to_keep()))
    (world.folder / "state" / "state.json").unlink()
    world.start()
    assert world.rollout.canary is None, "it knows only the file"
    hello = SimpleNamespace(desired=kept)
    world.controller.view.gateways.present["g"] = (hello, 0.0, "abc.7")  # type: ignore[assignment]
    starts = list(world.serve.starts)
    world.controller._gateways.forget_silent = lambda: None  # type: ignore[method-assign]
    assert not world.controller._reconciler.is_ready(), "no gateway is told anything before"
    world.rounds()
    assert world.controller._reconciler.is_ready()
    assert world.rollout == before and world.serve.starts == starts and not world.serve.deleted


def test_an_agent_that_came_after_the_start_is_known_again_before_anything_is_done(world: World) -> None:
    """Its instances can be checked then; and a gateway that comes later may know something newer."""
    older = json.loads(json.dumps(world.controller.versions.to_keep()))
    world.deploy(10)
    world.rounds()
    newer, before = json.loads(json.dumps(world.controller.versions.to_keep())), world.rollout
    (world.folder / "state" / "state.json").unlink()
    world.args = {**world.args, "agents": {}}
    world.start()
    reconciler, starts = world.controller._reconciler, list(world.serve.starts)
    for kept in (older, newer):
        kept["started_with"] = world.controller._state.started_with
    world.controller._gateways.forget_silent = lambda: None  # type: ignore[method-assign]
    reconciler._settled = lambda: False  # type: ignore[method-assign]
    world.round()
    assert not world.controller.view.settings.agents
    world.controller.view.gateways.present["g1"] = (SimpleNamespace(desired=older), 0.0, "abc.6")  # type: ignore[assignment]
    world.round()
    assert set(world.controller.view.settings.agents) == {"a"} and world.rollout.canary is None
    world.controller.view.gateways.present["g2"] = (SimpleNamespace(desired=newer), 0.0, "abc.7")  # type: ignore[assignment]
    world.round()
    assert world.rollout == before and not reconciler.is_ready()
    del reconciler._settled
    world.rounds()
    assert reconciler.is_ready() and world.serve.starts == starts and not world.serve.deleted


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_of_a_whole_rollout_it_ends_as_without(tmp_path: Path, point: str) -> None:
    world = World(tmp_path)
    if point == "deploy.packed":
        world.kill_at = point
    world.rounds()
    hit = point == "deploy.packed" and world.kill_at is None

    def step(change: Callable[[], Any]) -> None:
        nonlocal hit
        world.kill_at = None if hit else point
        change()
        world.rounds(6)
        hit = hit or world.kill_at is None
        world.kill_at = None

    package = pack(world.folder, skip=[world.folder / "state"])
    block = world.args["agents"]["a"]
    step(lambda: world.run(world.controller.deploy("a", DeployRequest(block, package.digest, regions=("us", "eu", "ap")))))
    assert {spec.region for name, spec in world.serve.apps.items() if name.startswith("a.")} == {"us", "eu", "ap"}
    step(lambda: world.deploy(10))
    assert repr(world.rollout) == "<Rollout: v1, v2 10 %>"
    step(lambda: world.run(world.controller.rollback("a")))
    assert world.serve.versions() == {"v1"}
    step(lambda: world.deploy(25, code="three"))
    step(lambda: world.run(world.controller.promote("a", 50)))
    assert repr(world.rollout) == "<Rollout: v1, v3 50 %>"
    step(lambda: world.run(world.controller.promote("a", 100)))
    assert repr(world.rollout) == "<Rollout: v3>" and world.serve.versions() == {"v3"}
    assert hit, f"nothing came by {point}"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("deploy"), st.sampled_from([1.0, 10.0, 50.0, 100.0])),
        st.tuples(st.just("promote"), st.sampled_from([5.0, 25.0, 60.0, 100.0])),
        st.tuples(st.just("rollback"), st.just(0.0)),
        st.tuples(st.just("ill"), st.just(0.0)),
        st.tuples(st.just("well"), st.just(0.0)),
        st.tuples(st.just("time"), st.sampled_from([1.0, 200.0])),
        st.tuples(st.just("round"), st.just(0.0)),
        st.tuples(st.just("kill"), st.sampled_from(POINTS)),
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_any_order_of_steps_and_crashes_ends_in_a_sane_state(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.rounds()
        for count, (step, value) in enumerate(steps):
            before = world.rollout
            healthy = {version.name: world.healthy(version.name) for version in before.versions}
            take(world, step, value, count)
            check(world, before, healthy)
        world.kill_at, world.ill = None, set()
        world.rounds(6)
        rollout = world.rollout
        assert rollout.canary is None or not rollout.canary.moving
        assert world.serve.versions() == {version.name for version in rollout.versions}
        saved = json.loads((Path(folder) / "state" / "state.json").read_text())
        assert transitions.restored(saved["rollouts"]["a"]) == rollout
        assert all(world.controller.versions.packages.has(str(version.package)) for version in rollout.versions)


def take(world: World, step: str, value: Any, count: int) -> None:
    canary = world.rollout.canary
    try:
        if step == "deploy":
            world.deploy(value, code=f"code {count}")
        elif step == "promote":
            world.run(world.controller.promote("a", value))
        elif step == "rollback":
            world.run(world.controller.rollback("a"))
        elif step == "ill" and canary is not None:
            world.ill.add(canary.version.name)
        elif step == "well":
            world.ill.clear()
        elif step == "time":
            world.now += value
        elif step == "kill":
            world.kill_at = value
    except RolloutRejected:
        return
    world.round()


def check(world: World, before: Rollout, healthy: dict[str, int]) -> None:
    """Nobody gets traffic without instances, and the stable version is never without its own."""
    after = world.rollout
    if after.stable.name != before.stable.name:
        assert before.canary is not None and after.stable.name == before.canary.version.name
        assert healthy.get(after.stable.name) or world.healthy(after.stable.name)
    if after.canary is not None:
        assert 0 <= after.canary.percent <= 100
        gained = before.canary is None or after.canary.percent > before.canary.percent
        if gained and after.canary.percent > 0:
            assert healthy.get(after.canary.version.name)
    assert after.stable.name in world.serve.versions()
    shares = world.controller.versions.shares()["a"]
    assert shares.stable == after.stable.name and 0 <= shares.percent < 100
