"""Which version answers: exact shares, sessions that stay, and a version without a healthy instance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import aiohttp
import pytest

from cluster.messages import VersionShare
from deployments.balancing.version_router import VersionRouter
from policies.base import Instance, Request
from policies.chooser import Chooser
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane

V1 = [Instance(f"instance-{n}", version="v1") for n in (1, 2, 3)]
V2 = [Instance(f"instance-{n}", version="v2") for n in (4, 5)]


def versions(share: VersionShare | None, *, sessions: bool = False, seed: int = 1) -> VersionRouter:
    rng = Random(seed)
    made = VersionRouter("a", lambda: Chooser("round-robin", rng, affinity=sessions), rng)
    made.update_share(share)
    return made


def ten(percent: float = 10.0) -> VersionShare:
    return VersionShare("v1", "v2", percent)


def pick(made: VersionRouter, everyone: Sequence[Instance], session: str | None = None, **more: str) -> Instance | None:
    version = made.version_for(session, more.get("pinned"))
    return made.choose(everyone, everyone, Request("a", session, version=version, pin=more.get("pin")))


@pytest.mark.parametrize("percent", [1, 10, 25, 33.33, 50, 99])
@pytest.mark.parametrize("seed", range(3))
def test_of_any_number_of_requests_in_a_row_the_canary_gets_its_share_to_the_request(percent: float, seed: int) -> None:
    made, got = versions(ten(percent), seed=seed), 0
    for count in range(1, 1001):
        chosen = pick(made, V1 + V2)
        got += chosen is not None and chosen.version == "v2"
        assert abs(got - count * percent / 100) < 1
    if percent == 10:
        assert got == 100


def test_within_a_version_the_strategy_chooses() -> None:
    made = versions(ten(20))
    counted = Counter(chosen.id for _ in range(300) if (chosen := pick(made, V1 + V2)))
    assert counted == {"instance-1": 80, "instance-2": 80, "instance-3": 80, "instance-4": 30, "instance-5": 30}


def test_more_for_the_canary_moves_sessions_only_to_it_and_each_once() -> None:
    made, names = versions(ten(10), sessions=True), [f"session {n}" for n in range(10_000)]
    before = {name: made.version_for(name) for name in names}
    assert abs(sum(version == "v2" for version in before.values()) - 1000) < 100
    for percent in (25, 50, 100):
        made.update_share(ten(percent))
        after = {name: made.version_for(name) for name in names}
        assert all(after[name] == "v2" for name in names if before[name] == "v2")
        assert abs(sum(version == "v2" for version in after.values()) - 100 * percent) < 250
        before = after
    made.update_share(ten(10))
    assert {name for name in names if made.version_for(name) == "v2"} == {
        name for name in names if versions(ten(10)).version_for(name) == "v2"
    }


def test_every_gateway_says_the_same_of_a_session() -> None:
    one, other = versions(ten(30), seed=1), versions(ten(30), seed=2)
    assert all(one.version_for(f"s{n}") == other.version_for(f"s{n}") for n in range(500))


def test_a_pinned_session_stays_in_both_directions_while_its_version_has_anybody_well() -> None:
    made = versions(ten(1), sessions=True)
    assert all(made.version_for(f"s{n}", "v2") == "v2" for n in range(50))
    made.update_share(ten(99))
    assert all(made.version_for(f"s{n}", "v1") == "v1" for n in range(50))


def test_a_removed_version_keeps_no_session_and_a_draining_one_keeps_its_own() -> None:
    made = versions(VersionShare("v2", None, 0, ("v1",)), sessions=True)
    assert [made.version_for("s", "v1"), made.version_for("s", "v0"), made.version_for("s"), made.version_for(None)] == [
        "v1",
        "v2",
        "v2",
        "v2",
    ]


def test_new_requests_never_reach_a_draining_version_or_one_without_a_share() -> None:
    draining = [Instance("instance-1", version="v1", draining=True)]
    starting = [Instance("instance-9", version="v3")]
    made = versions(VersionShare("v2", None, 0, ("v1",)))
    assert {chosen.version for _ in range(20) if (chosen := pick(made, [*draining, *V2, *starting]))} == {"v2"}
    assert pick(made, [*draining, *starting]) is None


@pytest.mark.parametrize(("ill", "other"), [("v2", "v1"), ("v1", "v2")])
def test_a_version_without_a_healthy_instance_gives_its_traffic_to_the_other(ill: str, other: str) -> None:
    everyone = [Instance(i.id, version=i.version, healthy=i.version != ill) for i in V1 + V2]
    made = versions(ten(50))
    chosen = [pick(made, everyone) for _ in range(100)]
    assert {instance.version for instance in chosen if instance} == {other} and None not in chosen
    pinned = [pick(made, everyone, f"s{n}", pinned=ill) for n in range(20)]
    assert {instance.version for instance in pinned if instance} == {other} and None not in pinned


def test_when_all_of_its_version_were_tried_the_other_one_is_asked() -> None:
    made = versions(ten(50))
    chosen = made.choose(V1, V1 + V2, Request("a", version="v2"))
    assert chosen is not None and chosen.version == "v1"


def test_without_a_share_all_are_alike() -> None:
    made = versions(None)
    counted = Counter(chosen.id for _ in range(50) if (chosen := pick(made, V1 + V2)))
    assert set(counted.values()) == {10} and made.version_for("s", "v2") is None


# --- through sockets ----------------------------------------------------------------------------------------------------


def agent() -> Agent:
    made = Agent("a")

    @made.on_message
    async def handle(message: str) -> str:
        return "ok"

    return made


async def ask(client: aiohttp.ClientSession) -> str:
    async with client.post("/agents/a/messages", json={"message": "hi"}) as response:
        assert response.status == 200
        return response.headers["x-swiftclaw-version"]


async def test_exactly_100_of_1000_requests_without_a_session(plane: DataPlane) -> None:
    await plane.add(agent(), count=3)
    await plane.add(agent(), count=1, version="v2")
    plane.shares["a"] = ten(10)
    plane.announce()
    assert Counter([await ask(plane.client) for _ in range(1000)]) == {"v1": 900, "v2": 100}


async def test_a_cookie_keeps_its_version_until_that_is_rolled_back(plane: DataPlane) -> None:
    plane.blocks["a"] = {"loadBalancing": {"sessionAffinity": {"enabled": True}}}
    await plane.add(agent(), count=2)
    await plane.add(agent(), count=2, version="v2")
    plane.shares["a"] = ten(50)
    plane.announce()
    clients = [aiohttp.ClientSession(plane.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) for _ in range(12)]
    try:
        first = [await ask(client) for client in clients]
        assert Counter(first) == {"v1": 6, "v2": 6}, "new sessions take turns, too"
        for percent in (1, 99, 50):
            plane.shares["a"] = ten(percent)
            plane.announce()
            assert [await ask(client) for client in clients] == first
        plane.shares["a"] = VersionShare("v1")
        plane.announce()
        assert {await ask(client) for client in clients} == {"v1"}
    finally:
        for client in clients:
            await client.close()


async def test_a_retry_stays_with_the_version_while_it_has_another_instance(plane: DataPlane) -> None:
    await plane.add(agent(), count=2)
    names = await plane.add(agent(), count=2, version="v2")
    plane.shares["a"] = ten(50)
    plane.announce()
    await plane.end(f"a-{names[0]}")
    assert Counter([await ask(plane.client) for _ in range(40)]) == {"v1": 20, "v2": 20}
    await plane.end(f"a-{names[1]}")
    assert {await ask(plane.client) for _ in range(20)} == {"v1"}
