"""From what should run to the steps that get there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import parse
from cluster.desired.apps import Action, AppSpec, Deployed, desired_apps, labelled_regions, plan
from cluster.desired.state import AppRecord


def apps(regions: dict[str, int], *, cpus: float = 0.1, labelled: set[str] | None = None) -> dict[str, AppSpec]:
    agent: dict[str, Any] = {
        "agent": "m:x",
        "resources": {"cpus": cpus},
        "regions": {region: {"instances": count} for region, count in regions.items()},
    }
    args = {"gateways": [{"region": "us"}], "agents": {"a": agent}}
    return desired_apps(parse(args, Path("/folder")), {"us", "eu"} if labelled is None else labelled)


def remembered(desired: dict[str, AppSpec]) -> dict[str, AppRecord]:
    return {name: spec.record() for name, spec in desired.items()}


def running(desired: dict[str, AppSpec]) -> dict[str, str]:
    return dict.fromkeys(desired, "RUNNING")


def test_there_is_one_app_per_region_and_one_per_gateway() -> None:
    desired = apps({"us": 3, "eu": 2})
    assert {name: spec.replicas for name, spec in desired.items()} == {"gateway.us": 2, "a.v1.us": 3, "a.v1.eu": 2}
    assert all(spec.placed for spec in desired.values())


def test_regions_are_logical_where_no_node_carries_a_label() -> None:
    assert not any(spec.placed for spec in apps({"us": 1}, labelled=set()).values())


def test_labels_are_read_from_living_nodes_only() -> None:
    nodes: list[dict[str, Any]] = [
        {"Alive": True, "Labels": {"region": "us"}},
        {"Alive": False, "Labels": {"region": "eu"}},
        {"Alive": True, "Labels": {"zone": "a"}},
        {"Alive": True},
    ]
    assert labelled_regions(nodes) == {"us"}


def test_nothing_is_done_when_all_is_as_it_should_be() -> None:
    desired = apps({"us": 3})
    assert plan(desired, remembered(desired), running(desired), desired) == []


def test_what_does_not_run_is_started() -> None:
    desired = apps({"us": 1})
    assert {(action.do, action.app) for action in plan(desired, {}, {}, ())} == {("start", "gateway.us"), ("start", "a.v1.us")}


def test_a_new_region_touches_nothing_that_runs() -> None:
    before, after = apps({"us": 3}), apps({"us": 3, "eu": 2})
    assert plan(after, remembered(before), running(before), before) == [Action("start", "a.v1.eu", after["a.v1.eu"])]


def test_another_count_scales_and_another_size_replaces() -> None:
    before = apps({"us": 3})
    for after, step in ((apps({"us": 4}), "scale"), (apps({"us": 3}, cpus=0.5), "start")):
        assert plan(after, remembered(before), running(before), before) == [Action(step, "a.v1.us", after["a.v1.us"])]  # type: ignore[arg-type]


def test_what_is_no_longer_wanted_is_deleted_once_and_strangers_are_left_alone() -> None:
    before, after = apps({"us": 3, "eu": 2}), apps({"us": 3})
    seen = {**running(before), "somebody.elses": "RUNNING"}
    assert plan(after, remembered(before), seen, seen) == [Action("delete", "a.v1.eu")]
    assert plan(after, remembered(before), {**seen, "a.v1.eu": "DELETING"}, seen) == []


def test_an_app_that_is_being_deleted_is_started_only_when_it_is_gone() -> None:
    desired = apps({"us": 1})
    seen = {**running(desired), "a.v1.us": "DELETING"}
    assert plan(desired, remembered(desired), seen, seen) == []


def test_an_app_that_runs_without_being_remembered_is_adopted() -> None:
    desired = apps({"us": 1})
    assert plan(desired, {}, running(desired), desired) == []


def test_a_move_to_another_region_ends_when_somebody_is_well_there() -> None:
    before, after = apps({"us": 1}), apps({"eu": 1})
    known, seen = remembered(before), running(before)
    assert plan(after, known, seen, before) == [Action("start", "a.v1.eu", after["a.v1.eu"])]
    known, seen = {**known, **remembered(after)}, {**seen, "a.v1.eu": "DEPLOYING"}
    assert plan(after, known, seen, before) == []
    seen = {**seen, "a.v1.eu": "RUNNING"}
    assert plan(after, known, seen, before) == [], "it runs, but its checks have not passed"
    assert plan(after, known, seen, {*before, *after}) == [Action("delete", "a.v1.us")]


def test_a_region_goes_even_while_another_one_cannot_be_had() -> None:
    before, after = apps({"us": 1, "eu": 1}), apps({"us": 1, "ap": 1})
    known, seen = {**remembered(before), **remembered(after)}, {**running(before), "a.v1.ap": "DEPLOYING"}
    assert plan(after, known, seen, before) == [Action("delete", "a.v1.eu")]


def versions(names: dict[str, float]) -> dict[str, AppSpec]:
    args = {"gateways": [{"region": "us"}], "agents": {"a": {"agent": "m:x", "regions": {"us": {"instances": 3}}}}}
    settings = parse(args, Path("/"))
    agent = settings.agents["a"]
    deployed = [Deployed(replace(agent, version=name), f"code-{name}", percent) for name, percent in names.items()]
    return desired_apps(settings, {"us"}, versions={"a": deployed})


def test_a_canary_runs_beside_with_the_instances_for_its_share() -> None:
    counts = {percent: versions({"v1": 100, "v2": percent})["a.v2.us"].replicas for percent in (1, 10, 33, 34, 50, 67, 100)}
    assert counts == {1: 1, 10: 1, 33: 1, 34: 2, 50: 2, 67: 3, 100: 3}
    assert versions({"v1": 100, "v2": 10})["a.v1.us"].replicas == 3


def test_a_version_that_is_not_desired_goes_at_once() -> None:
    before, after = versions({"v1": 100, "v2": 10}), versions({"v1": 100})
    assert plan(after, remembered(before), running(before), ()) == [Action("delete", "a.v2.us")]


def test_other_code_or_another_environment_is_another_identity() -> None:
    agent = parse({"agents": {"a": {"agent": "m:x"}}}, Path("/")).agents["a"]
    settings = parse({"agents": {"a": {"agent": "m:x"}}}, Path("/"))

    def identity(one: Deployed) -> str:
        return desired_apps(settings, set(), versions={"a": [one]})["a.v1.local"].identity

    plain = identity(Deployed(agent))
    assert identity(Deployed(agent, "digest")) != plain
    assert identity(Deployed(replace(agent, runtime_env={"env_vars": {"A": "1"}}))) != plain


def test_a_region_without_instances_has_no_app() -> None:
    assert "a.v1.eu" not in apps({"us": 1, "eu": 0})


def test_a_label_that_appears_or_goes_restarts_nothing() -> None:
    before, after = apps({"us": 1}, labelled=set()), apps({"us": 1}, labelled={"us"})
    assert plan(after, remembered(before), running(before), before) == []


def test_another_number_of_gateways_scales_and_another_port_replaces() -> None:
    def gateways(**block: Any) -> dict[str, AppSpec]:
        return desired_apps(parse({"gateways": [{"region": "us", **block}], "agents": {}}, Path("/")), {"us"})

    before = gateways(replicas=2)
    for after, step in ((gateways(replicas=1), "scale"), (gateways(replicas=3), "scale"), (gateways(port=9000), "start")):
        assert plan(after, remembered(before), running(before), before) == [Action(step, "gateway.us", after["gateway.us"])]  # type: ignore[arg-type]
