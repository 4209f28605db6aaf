"""Blocks that do nothing as they stand are named; those that do something, or are switched off, are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import parse
from cluster.config.effects import scaling_notes, without_effect
from cluster.config.settings import Settings


def settings(**block: Any) -> Settings:
    return parse({"gateways": [{"region": "us"}], "agents": {"a": {"agent": "m:x", **block}}}, Path("/"))


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"rateLimit": {"requests": 100, "window": "1m"}}, ["agents.a.rateLimit"]),
        ({"rateLimit": {"enabled": True, "requests": 100}}, []),
        ({"rateLimit": {"enabled": False, "requests": 100}}, []),
        ({"accessLog": {"sample": 10}}, ["agents.a.accessLog"]),
        ({"loadBalancing": {"sessionAffinity": {"type": "header"}}}, ["agents.a.loadBalancing.sessionAffinity"]),
        ({"loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}, []),
        ({"loadBalancing": {"sessionAffinity": {"enabled": False}}}, []),
        ({"circuitBreaker": {"failureThreshold": 3}, "healthCheck": {"interval": "1s"}}, []),
        ({}, []),
    ],
)
def test_a_block_that_has_to_be_switched_on(block: dict[str, Any], named: list[str]) -> None:
    warnings = without_effect(settings(**block))
    assert [warning.partition(" ")[0] for warning in warnings] == named
    assert all("add `enabled: true`" in warning for warning in warnings)


def test_a_window_without_a_strategy_that_measures() -> None:
    def warned(strategy: str) -> list[str]:
        return without_effect(settings(loadBalancing={"strategy": strategy, "window": "1m"}))

    assert warned("response-time") == []
    assert warned("round-robin") == [
        "agents.a.loadBalancing.window has no effect: strategy round-robin does not measure response times"
    ]


def test_scaling_bounds_are_added_up_over_the_regions() -> None:
    scaling = {"minInstances": 2, "maxInstances": 10}
    (note,) = scaling_notes(settings(scaling=scaling, regions={"us": {}, "eu": {"maxInstances": 4}, "ap": {"minInstances": 0}}))
    assert note == "agents.a.scaling: the bounds hold per region; over 3 regions they allow 4 to 24 instances"
    assert scaling_notes(settings(scaling=scaling)) == scaling_notes(settings(regions={"us": {}, "eu": {}})) == []


def test_a_block_that_only_names_regions_runs_in_them() -> None:
    balancing = {"strategy": "geographic", "regions": ["us-east-1", "eu-west-1"]}
    made = parse({"agents": {"a": {"agent": "m:x", "loadBalancing": balancing}}}, Path("/"))
    assert list(made.agents["a"].regions) == ["us-east-1", "eu-west-1"]
    assert parse(made.to_args(), Path("/")) == made
