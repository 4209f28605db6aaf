"""A session has one home, live: three gateways, seven unevenly busy instances, and everything that may change meanwhile.

`SESSIONS` and `GATEWAYS` in the environment are other sizes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from itertools import groupby
from random import Random

import aiohttp
import psutil
import pytest

from tests.integration.conftest import Cluster, until
from tests.integration.load import note

pytestmark = pytest.mark.cluster

SESSIONS = int(os.environ.get("SESSIONS", "150"))  # 1000 when measured by hand
GATEWAYS = int(os.environ.get("GATEWAYS", "3"))
REGION = "us-east-1"
AGENT = """
import asyncio
import os
from swiftclaw import Agent

agent = Agent("sticky")


@agent.on_message
async def handle(message):
    await asyncio.sleep(float(message))
    return str(os.getpid())
"""


@pytest.fixture(scope="module")
def sticky(shared: Cluster) -> Iterator[Cluster]:
    (shared.folder / "sticky.py").write_text(AGENT)
    agent = {
        "agent": "sticky:agent",
        "regions": {REGION: {"instances": 7}},
        "resources": {"cpus": 0.01},
        "timeouts": {"request": "8s"},  # as long as an instance that drains waits for its sessions
        "loadBalancing": {"strategy": "least-connections", "sessionAffinity": {"enabled": True, "type": "client-ip"}},
    }
    shared.write({"sticky": agent}, replicas=GATEWAYS)
    shared.up()
    yield shared


class Sessions:
    """Sessions named by header, body and address in turn; `homes`: the process that answered each turn."""

    def __init__(self, url: str, count: int) -> None:
        self.url = url
        self.homes: dict[int, list[int]] = {}
        self.start(count)

    def start(self, count: int) -> None:
        """Further sessions, from the next turn on."""
        self.homes.update({number: [] for number in range(len(self.homes), len(self.homes) + count)})

    async def turn(self, rng: Random) -> None:
        """One request of every session, on a connection of its own."""
        places = asyncio.Semaphore(24)

        async def one(number: int) -> None:
            async with places:
                self.homes[number].append(await self._ask(number, rng.choice((0.0, 0.0, 0.02))))

        order = list(self.homes)
        rng.shuffle(order)
        await asyncio.gather(*(one(number) for number in order))

    async def _ask(self, number: int, seconds: float) -> int:
        name, body, address = f"session-{number}", {"message": str(seconds)}, "127.0.0.1"
        headers = {}
        if number % 3 == 0:
            headers["x-session-id"] = name
        elif number % 3 == 1:
            body["session_id"] = name
        else:
            address = f"127.7.{number // 250}.{number % 250 + 1}"
        for _ in range(150):
            connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
            try:
                async with (
                    aiohttp.ClientSession(connector=connector) as client,
                    client.post(f"{self.url}/agents/sticky/messages", json=body, headers=headers) as response,
                ):
                    if response.status == 200:
                        return int((await response.json())["reply"])
            except (aiohttp.ClientError, OSError):
                pass  # its gateway was killed
            await asyncio.sleep(0.2)
        raise AssertionError(f"{name} got no answer")

    def at(self, pid: int) -> int:
        """How many sessions live at the process."""
        return sum(homes[-1] == pid for homes in self.homes.values())

    def check(self) -> int:
        """The number of moves. A session leaves a process only when that has ended, and does not come back to it."""
        moves = 0
        for number, answered in self.homes.items():
            homes = [home for home, _ in groupby(answered)]
            assert len(homes) == len(set(homes)), (number, answered)
            alive = [home for home in homes[:-1] if psutil.pid_exists(home)]
            assert not alive, f"session {number} left {alive}, which still run: {answered}"
            moves += len(homes) - 1
        return moves


def settled(cluster: Cluster, instances: int) -> None:
    until(
        lambda: len(cluster.healthy("sticky")) == instances and len(cluster.instances("sticky")) == instances,
        f"{instances} instances",
    )
    until(lambda: len(cluster.gateways()) == GATEWAYS, f"{GATEWAYS} gateways")


def scale(cluster: Cluster, instances: int) -> None:
    done = cluster.run("scale", "sticky", "--region", REGION, "--instances", str(instances))
    assert done.returncode == 0, done.stderr


async def test_no_session_meets_a_second_home_while_its_own_is_there(sticky: Cluster) -> None:
    """Nine turns: at rest, busy, and in the midst of every change."""
    sessions, rng = Sessions(sticky.url, SESSIONS - SESSIONS // 3), Random(7)

    async def turn(change: Callable[[], object] = lambda: None) -> None:
        await asyncio.gather(sessions.turn(rng), asyncio.to_thread(change))

    def kill_gateway() -> None:
        victim = sticky.gateways()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in {row["pid"] for row in sticky.gateways()}, "the killed gateway is gone")
        settled(sticky, 8)  # and another one has taken its place

    def kill_controller() -> None:
        os.kill(sticky.controller_pid(), signal.SIGKILL)
        until(lambda: sticky.instances("sticky"), "the Controller is back")
        settled(sticky, 8)

    busy = [asyncio.create_task(hold(sticky.url, number)) for number in range(12)]
    await turn()
    await turn()
    await turn(lambda: scale(sticky, 8))
    await asyncio.to_thread(settled, sticky, 8)
    await turn(kill_gateway)
    await turn(kill_controller)
    assert sessions.check() == 0, "no instance has left"

    victim = next(iter(sticky.healthy("sticky").values()))
    on_killed = sessions.at(victim)
    os.kill(victim, signal.SIGKILL)
    await turn(lambda: until(lambda: victim not in sticky.healthy("sticky").values(), "the killed instance is gone"))
    await asyncio.to_thread(settled, sticky, 8)
    sessions.start(SESSIONS // 3)  # the newest instance, which will drain, has sessions as well
    await turn()
    before = set(sticky.healthy("sticky").values())
    living = {pid: sessions.at(pid) for pid in before}
    await turn(lambda: scale(sticky, 7))
    await asyncio.to_thread(settled, sticky, 7)
    (drained,) = before - set(sticky.healthy("sticky").values())
    await asyncio.to_thread(until, lambda: not psutil.pid_exists(drained), "the drained instance has ended")
    await turn()
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    moves = sessions.check()
    note(
        f"{GATEWAYS} gateways, {SESSIONS} sessions: {on_killed} lived on the killed instance, {living[drained]} on the drained "
        f"one; {moves} moves"
    )
    assert on_killed > 0 and living[drained] > 0 and moves == on_killed + living[drained]


async def hold(url: str, number: int) -> None:
    """Keeps some instances busier than others: a session of its own that is always in flight."""
    async with aiohttp.ClientSession() as client:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                body = {"message": "0.3", "session_id": f"busy-{number % 3}"}
                async with client.post(f"{url}/agents/sticky/messages", json=body) as response:
                    await response.read()
            await asyncio.sleep(0.02)
