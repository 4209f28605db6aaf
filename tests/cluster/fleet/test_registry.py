"""Names of instances, their states, and the changes that are announced."""

from __future__ import annotations

import json
from itertools import product

from cluster.fleet.registry import InstanceRecord, Registry, lowest_free
from cluster.instance_state import STATES
from cluster.messages import Registration
from policies.rate_limit import RateRule


def registration(replica: str, agent: str = "a", region: str = "local", **more: object) -> Registration:
    fields = {"host": "127.0.0.1", "port": 1, "pid": 1, "node": "n", "started_at": 0.0, **more}
    version = str(fields.pop("version", "v1"))
    return Registration(agent=agent, version=version, region=region, app=f"{agent}.{version}", replica=replica, **fields)  # type: ignore[arg-type]


class Told:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def test_the_lowest_free_number_is_taken() -> None:
    assert lowest_free([]) == "instance-1"
    assert lowest_free(["instance-1", "instance-3", "instance-10"]) == "instance-2"


def test_names_are_counted_per_agent_and_a_replacement_gets_the_name_that_became_free() -> None:
    registry = Registry(Told())
    assert [registry.admit(registration(r)).id for r in "xyz"] == ["instance-1", "instance-2", "instance-3"]
    assert registry.admit(registration("other", agent="b")).id == "instance-1"
    registry.remove("y")
    assert registry.admit(registration("new")).id == "instance-2"


def test_the_same_replica_keeps_its_record() -> None:
    registry = Registry(Told())
    assert registry.admit(registration("x")) is registry.admit(registration("x"))


def test_an_instance_that_says_its_name_keeps_it_if_it_is_free() -> None:
    registry = Registry(Told())
    assert registry.admit(registration("x", id="instance-5")).id == "instance-5"
    assert registry.admit(registration("y", id="instance-5")).id == "instance-1"


def test_gateways_are_told_of_changes_and_only_of_changes() -> None:
    told = Told()
    registry = Registry(told)
    registry.admit(registration("x"))
    assert not registry.observe("x"), "it answers, but no check has said that it is well"
    assert registry.judge("x", True, "", 1.0) and told.times == 2
    assert not registry.judge("x", True, "", 2.0) and not registry.observe("x") and told.times == 2
    assert not registry.observe("nobody") and told.times == 2
    registry.remove("x")
    registry.remove("x")
    assert told.times == 3


def test_its_state_follows_from_what_is_known_the_graver_the_sooner() -> None:
    registry = Registry(Told())
    record = registry.admit(registration("x"))
    seen = [record.state]
    for step in (
        lambda: registry.judge("x", True, "", 1.0),
        lambda: registry.observe("x"),
        lambda: registry.judge("x", False, "database", 2.0),
        lambda: registry.eject("x", "has not answered"),
        lambda: registry.observe("x"),
        lambda: registry.judge("x", True, "", 3.0),
        lambda: registry.drain("x", "stopping"),
        lambda: registry.observe("x"),
        lambda: registry.observe("x", draining=True, stopped=True),
    ):
        step()
        seen.append(record.state)
    assert seen == [
        "starting", "starting", "healthy", "unhealthy", "ejected", "unhealthy", "healthy", "draining", "draining",
        "stopped",
    ]  # fmt: skip
    assert (record.reason, record.checked_at) == ("stopping", 3.0)


def test_a_dump_restores_to_the_same_registry() -> None:
    registry = Registry(Told())
    for replica in ("x", "y"):
        registry.admit(registration(replica))
    registry.observe("x")
    registry.judge("x", True, "", 1.0)
    again = Registry(Told())
    again.restore(registry.dump())
    assert again.dump() == registry.dump()


def test_a_dump_survives_json_and_one_from_before_the_rules_is_understood() -> None:
    registry = Registry(Told())
    registry.admit(registration("x", rate_rules=(RateRule(3, 60.0, "user_id"),)))
    dumped = json.loads(json.dumps(registry.dump()))
    again = Registry(Told())
    again.restore(dumped)
    assert again.dump() == registry.dump()
    assert [record.registration.rate_rules for record in again] == [(RateRule(3, 60.0, "user_id", "sliding-window"),)]
    del dumped[0]["registration"]["rate_rules"]
    dumped[0]["registration"]["rate_limited"] = True
    old = Registry(Told())
    old.restore(dumped)
    assert [(record.id, record.registration.rate_rules) for record in old] == [("instance-1", ())]


def test_a_record_states_its_situation() -> None:
    registry = Registry(lambda: None)
    record = registry.admit(Registration("a", "v1", "eu", "a.v1.eu", "r", "h", 1, 1, "n", 0.0))
    assert repr(record) == "<InstanceRecord instance-1 of a: starting>"
    registry.observe("r")
    registry.judge("r", False, "database", None)
    assert repr(record) == "<InstanceRecord instance-1 of a: unhealthy (database)>"


def test_every_state_of_the_list_is_reached_and_no_other() -> None:
    values_of = ((None, True, False), (None, True, False), (False, True), (False, True))  # answering, well, draining, stopped
    registration = Registration("a", "v1", "eu", "a.v1.eu", "r", "h", 1, 1, "n", 0.0)
    records = (InstanceRecord("instance-1", registration, *values) for values in product(*values_of))
    assert {record.state for record in records} == set(STATES)
