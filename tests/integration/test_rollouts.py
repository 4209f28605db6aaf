"""New versions under load on a real cluster: nobody notices, whatever becomes of them and of the Controller."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from cluster.desired.failpoints import POINTS
from tests.integration.conftest import Cluster, get, until

pytestmark = pytest.mark.cluster

AGENT = """
import asyncio
import os
from swiftclaw import Agent

WORD = {word!r}
END = os.environ.get("SHOP_END", "!")
agent = Agent("shop", session_affinity=True)


@agent.on_message
async def handle(message):
    if WORD == "broken":
        raise RuntimeError("as it was meant to")
    for piece in (WORD, " ", END):
        yield piece
        if message == "slowly":
            await asyncio.sleep(0.2)


@agent.health_check
async def check():
    return {{"status": "unhealthy", "reason": "as it was meant to be"}} if WORD == "ill" else {{"status": "healthy"}}
"""
REGIONS = {"us-east-1": {"instances": 2}, "eu-west-1": {"instances": 1}, "ap-southeast-1": {"instances": 1}}
CLIENTS, RATE = 12, 60.0
AT_ONCE = 4  # requests without a session


@dataclass
class Load:
    """Clients with a session each, one request after the other; a third of them are streams."""

    url: str
    seen: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))  # client -> versions, in order
    failed: list[tuple[int, str]] = field(default_factory=list)  # client, what it was told
    sent: int = 0
    done: bool = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
            while not self.done:
                stream = self.sent % 3 == 0
                self.sent += 1
                body = {"message": "slowly" if stream else "hi", "stream": stream}
                try:
                    async with client.post(f"{self.url}/agents/shop/messages", json=body) as response:
                        text = await response.text()
                        self.seen[number].append(response.headers.get("x-swiftclaw-version", ""))
                        if response.status != 200 or (stream and "[DONE]" not in text):
                            self.failed.append((number, f"{response.status} {text[:200]}"))
                except aiohttp.ClientError as error:
                    self.failed.append((number, repr(error)))
                await asyncio.sleep(CLIENTS / RATE)

    def versions(self) -> set[str]:
        return {version for seen in self.seen.values() for version in seen}

    def hurt(self) -> set[int]:
        """Who saw an error."""
        return {number for number, _ in self.failed}

    def moves(self) -> list[list[str]]:
        """For each client the versions it met, without repetitions."""
        return [[v for v, before in zip(seen, ["", *seen], strict=False) if v != before] for seen in self.seen.values()]


@asynccontextmanager
async def load(cluster: Cluster) -> AsyncIterator[Load]:
    made = Load(cluster.url)
    running = asyncio.create_task(made.run())
    await asyncio.to_thread(until, lambda: len(made.seen) == CLIENTS, "every client has a session", 30)
    try:
        yield made
    finally:
        made.done = True
        await running


def write(cluster: Cluster, word: str) -> None:
    (cluster.folder / "shop.py").write_text(AGENT.format(word=word))


def configure(cluster: Cluster, **blocks: Any) -> None:
    checks = {"interval": "1s", "unhealthyThreshold": 1, "healthyThreshold": 1}
    soon = {"request": "4s"}  # as long as sessions may keep an instance that drains
    agent = {"agent": "shop:agent", "regions": REGIONS, "healthCheck": checks, "timeouts": soon, **blocks}
    cluster.write({"shop": agent}, replicas=1)


async def run(cluster: Cluster, *command: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(cluster.run, *command)


async def ok(cluster: Cluster, *command: str) -> str:
    done = await run(cluster, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


async def answers(cluster: Cluster, count: int) -> Counter[tuple[str, str]]:
    """(version, what it said) of requests without a session, each of a user of its own; `AT_ONCE` at a time."""
    found: Counter[tuple[str, str]] = Counter()
    left = iter(range(count))

    async def some(client: aiohttp.ClientSession) -> None:
        for _ in left:
            async with client.post(f"{cluster.url}/agents/shop/messages", json={"message": "hi"}) as response:
                body = await response.json()
                found[response.headers.get("x-swiftclaw-version", ""), str(body.get("reply", response.status))] += 1

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        await asyncio.gather(*(some(client) for _ in range(AT_ONCE)))
    return found


def rollout(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = get(f"{cluster.admin}/api/agents/shop")["rollout"]
    return found


def running_versions(cluster: Cluster) -> set[str]:
    return {row["version"] for row in cluster.instances("shop")}


def told(cluster: Cluster) -> bool:
    """Whether every gateway acts on what the admin port shows."""
    return all(gateway["current"] for gateway in cluster.gateways())


def stable(cluster: Cluster) -> str:
    return str(rollout(cluster)["stable"])


@pytest.fixture(scope="module")
def shop(shared: Cluster) -> Cluster:
    shared.clear()  # the Controller is started without the agent: whoever loses its state does not find it in its arguments
    write(shared, "one")
    configure(shared)
    shared.up()
    return shared


async def test_from_10_percent_to_all_of_it_and_no_request_fails(shop: Cluster) -> None:
    assert "nothing to deploy" in await ok(shop, "deploy", "shop")
    write(shop, "two")
    async with load(shop) as made:
        assert await ok(shop, "deploy", "shop", "--canary", "10") == "v2 receives 10 % of the traffic to shop"
        assert await answers(shop, 1000) == {("v1", "one !"): 900, ("v2", "two !"): 100}
        for percent in (25, 50):
            await ok(shop, "promote", "shop", "--canary", str(percent))
            assert (await answers(shop, 200))["v2", "two !"] == 2 * percent
        both = await ok(shop, "status", "shop")
        assert re.search(r"v1 +stable +50 %", both) and re.search(r"v2 +canary +50 %", both)
        assert await ok(shop, "promote", "shop", "--canary", "100") == "v2 receives all traffic to shop"
        assert await answers(shop, 50) == {("v2", "two !"): 50}
        await asyncio.sleep(1)
    assert running_versions(shop) == {"v2"}
    assert made.failed == [] and made.sent > 300
    assert all(moved in (["v1", "v2"], ["v2"]) for moved in made.moves()), "a session moves once, from stable to canary"


async def test_an_instance_that_restarts_runs_its_versions_code_whatever_is_on_disk(shop: Cluster) -> None:
    now = stable(shop)
    write(shop, "something else")
    pid = next(iter(shop.healthy("shop").values()))
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in shop.healthy("shop").values() and len(shop.healthy("shop")) == 4, "another one", 60)
    assert await answers(shop, 40) == {(now, "two !"): 40}
    write(shop, "two")
    assert "nothing to deploy" in await ok(shop, "deploy", "shop")


async def test_a_version_that_never_gets_well_never_gets_a_request_and_is_gone(shop: Cluster) -> None:
    now = stable(shop)
    write(shop, "ill")
    async with load(shop) as made:
        done = await run(shop, "deploy", "shop", "--canary", "50", "--deadline", "8")
    assert done.returncode == 1 and "not healthy within 8 s" in done.stderr, done.stdout + done.stderr
    assert made.versions() == {now} and made.failed == []
    until(lambda: running_versions(shop) == {now}, "it is gone", 60)
    assert "not healthy within 8 s" in await ok(shop, "status", "shop")


async def test_a_rollback_in_the_middle_is_noticed_by_nobody(shop: Cluster) -> None:
    now = stable(shop)
    write(shop, "three")
    async with load(shop) as made:
        await ok(shop, "deploy", "shop", "--canary", "50")
        refused = await run(shop, "deploy", "shop", "--canary", "50", "--version", "other")
        assert refused.returncode == 1 and "promote it or roll it back first" in refused.stderr
        name = rollout(shop)["canary"]
        assert (await answers(shop, 20))[name, "three !"] == 10
        await ok(shop, "rollback", "shop")
        assert await answers(shop, 20) == {(now, "two !"): 20}
    assert made.failed == []
    assert running_versions(shop) == {now}


async def test_regions_come_and_go_by_themselves(shop: Cluster) -> None:
    write(shop, "two")
    before = {row["id"]: (row["pid"], row["region"]) for row in shop.instances("shop")}
    kept = {name: pid for name, (pid, region) in before.items() if region != "ap-southeast-1"}
    async with load(shop) as made:
        await ok(shop, "deploy", "shop", "--regions", "us-east-1,eu-west-1")
        until(lambda: shop.healthy("shop") == kept, "only the two regions, untouched", 60)
        await ok(shop, "deploy", "shop", "--regions", "us-east-1,eu-west-1,ap-southeast-1")
        assert kept.items() <= shop.healthy("shop").items() and len(shop.healthy("shop")) == 4
        await ok(shop, "deploy", "shop", "--regions", "us-east-1,eu-west-1,ap-southeast-1,sa-east-1", "--no-wait")
        until(lambda: any("sa-east-1" in said for said in get(f"{shop.admin}/api/status")["warnings"]), "what is missing", 30)
        await ok(shop, "deploy", "shop", "--regions", "us-east-1,eu-west-1,ap-southeast-1")
    assert made.failed == []


async def test_one_that_answers_errors_is_rolled_back_by_the_analysis_and_a_good_one_promoted(shop: Cluster) -> None:
    now = stable(shop)
    many = 50  # more than it takes to open the circuits of all its instances: from then on it gets only probes
    terms = {"maxErrorRate": 5, "minRequests": many, "interval": "1s", "maxLatencyRatio": 50, "steps": [20, 100]}
    configure(shop, canary=terms)
    await asyncio.to_thread(shop.up)
    write(shop, "broken")
    async with load(shop) as made:
        name = re.search(r"v\d+", await ok(shop, "deploy", "shop", "--canary", "20", "--no-wait"))
        assert name is not None
        alone: Counter[tuple[str, str]] = Counter()  # users without a session: a request each
        await asyncio.to_thread(until, lambda: rollout(shop)["percent"] or not rollout(shop)["canary"], "it has traffic", 130)
        while rollout(shop)["canary"]:
            alone += await answers(shop, 20)
            await asyncio.sleep(0.3)  # more would only keep instances from starting
        last = rollout(shop)["last"]
    why = r".* % of the canary's \d+ requests failed \(allowed: 5 %\), and all its circuit breakers are open"
    assert re.fullmatch(rf"{name[0]} was rolled back: {why}", last), last
    hurt, errors = made.hurt(), sum(count for (_, said), count in alone.items() if said == "500")
    print(
        f"{last}\nusers who saw an error: {len(hurt)} of {CLIENTS} with a session ({len(made.failed)} of {made.sent} requests),"
        f" {errors} of {alone.total()} without one"
    )
    assert {said[:3] for _, said in made.failed} <= {"500"} and {said for _, said in alone} == {"two !", "500"}
    assert 0 < len(hurt) + errors < CLIENTS + alone.total()
    events = [event["message"] for event in get(f"{shop.admin}/api/events?kind=rollout")]
    assert any(last in message for message in events)
    assert all(now in moved for moved in made.moves())
    until(lambda: running_versions(shop) == {now}, "it is gone", 60)
    write(shop, "four")
    async with load(shop) as made:
        await ok(shop, "deploy", "shop", "--canary", "20")
        ends = asyncio.get_running_loop().time() + 90
        while rollout(shop)["canary"] and asyncio.get_running_loop().time() < ends:
            await answers(shop, 20)
            await asyncio.sleep(0.3)
        await asyncio.to_thread(until, lambda: told(shop), "every gateway knows", 30)
        assert set(await answers(shop, 10)) == {(stable(shop), "four !")}
    assert made.failed == []


async def test_a_version_has_an_environment_of_its_own(shop: Cluster) -> None:
    before = stable(shop)
    configure(shop, runtimeEnv={"env": {"SHOP_END": "?"}})
    async with load(shop) as made:
        await ok(shop, "deploy", "shop", "--canary", "50")
        assert await answers(shop, 20) == {(before, "four !"): 10, (rollout(shop)["canary"], "four ?"): 10}
        await ok(shop, "rollback", "shop")
    assert made.failed == []


async def test_a_lost_state_folder_changes_no_share(shop: Cluster) -> None:
    configure(shop)
    await asyncio.to_thread(shop.up)
    now = stable(shop)
    write(shop, "seven")
    await ok(shop, "deploy", "shop", "--canary", "30", "--version", "seven")
    before, instances, pid = rollout(shop), shop.healthy("shop"), shop.controller_pid()
    (shop.folder / ".swiftclaw" / "state.json").unlink()
    for file in (shop.folder / ".swiftclaw" / "packages").iterdir():
        file.unlink()
    async with load(shop) as made:
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: shop.controller_pid() != pid, "another Controller", 60)
        await asyncio.to_thread(until, lambda: rollout(shop) == before, "the same versions and shares", 60)
        await asyncio.to_thread(until, lambda: shop.healthy("shop") == instances, "the same instances", 60)
        assert (await answers(shop, 100))["seven", "seven !"] == 30
    assert made.failed == []
    state = json.loads((shop.folder / ".swiftclaw" / "state.json").read_text())["rollouts"]["shop"]
    kept = {state["stable"]["package"], state["canary"]["version"]["package"]}
    packages = shop.folder / ".swiftclaw" / "packages"
    until(lambda: kept <= {file.stem for file in packages.iterdir()}, "the code is given back by who runs it", 60)
    await ok(shop, "rollback", "shop")
    assert running_versions(shop) == {now}


async def test_a_controller_killed_at_any_point_finishes_or_undoes_it(shop: Cluster) -> None:
    """Also one that is killed again and again before it is done."""
    configure(shop, regions={"us-east-1": {"instances": 2}}, loadBalancing={"sessionAffinity": {"enabled": False}})
    await asyncio.to_thread(shop.up)
    stop_at, killed = shop.folder / ".swiftclaw" / "stop-at", []

    async def change(points: list[str], *command: str) -> None:
        """The Controller is killed at the first of the points; the one after it goes on by itself, to the next point."""
        asked = None
        for point in points:
            stop_at.write_text(point)
            asked = asked or asyncio.create_task(run(shop, *command, "--no-wait"))
            await asyncio.to_thread(until, lambda: not stop_at.exists(), f"killed at {point}", 60)
            killed.append(point)
        if asked:
            await asked

    async def settled(canary: str | None, percent: float) -> None:
        def there() -> bool:
            now = rollout(shop)
            versions = {now["stable"]} | ({canary} if canary else set())
            return (now["canary"], now["percent"]) == (canary, percent) and running_versions(shop) == versions and told(shop)

        await asyncio.to_thread(until, there, f"{canary} at {percent} % and nothing else", 60)

    async with load(shop) as made:
        before = stable(shop)
        write(shop, "kill 1")
        coming = ["deploy.saved", "start.before", "start.after", "traffic.saved"]
        await change(coming, "deploy", "shop", "--canary", "20", "--version", "k1")
        await settled("k1", 20)
        await change(["promote.saved", "traffic.saved"], "promote", "shop", "--canary", "40")
        await settled("k1", 40)
        await change(["rollback.saved", "delete.before", "delete.after"], "rollback", "shop")
        await settled(None, 0)
        assert stable(shop) == before
        write(shop, "kill 2")
        await ok(shop, "deploy", "shop", "--canary", "20", "--version", "k2")
        await change(["takeover.saved"], "promote", "shop", "--canary", "100")
        await settled(None, 0)
        assert stable(shop) == "k2"
        assert await answers(shop, 20) == {("k2", "kill 2 !"): 20}
    assert made.failed == []
    assert set(killed) == set(POINTS) - {"deploy.packed", "regions.saved"}, "tests/cluster/desired/test_rollouts.py has those"
