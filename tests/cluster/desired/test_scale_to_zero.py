"""The last instance of an agent that autoscaling takes to zero does not delay the first instance of the next request."""

from __future__ import annotations

from typing import Any

import pytest

from policies.lifecycle.draining import DrainTerms
from tests.cluster.desired.world import World

SCALED = {"minInstances": 0, "maxInstances": 4}


@pytest.mark.parametrize(
    ("instances", "scaling", "waits_for_sessions"),
    [(0, SCALED, False), (1, SCALED, True), (0, None, True), (2, None, True)],  # 0 without scaling: an operator's decision
)
def test_its_sessions_are_not_waited_for_when_another_request_starts_a_new_instance(
    world: World, instances: int, scaling: dict[str, int] | None, waits_for_sessions: bool
) -> None:
    block: dict[str, Any] = {
        "agent": "shop:agent",
        "regions": {"us": {"instances": instances}},
        "loadBalancing": {"sessionAffinity": {"enabled": True}},
        **({"scaling": scaling} if scaling else {}),
    }
    world.controller._desired.apply_file({**world.args, "agents": {"a": block}}, str(world.folder))
    terms = world.run(world.controller.deregister_instance("a.v1.us#0", "a"))
    assert isinstance(terms, DrainTerms) and terms.keep_sessions is waits_for_sessions
