"""Processes that die while requests run: who notices, and what is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.integration.conftest import Cluster, my_agent, until

pytestmark = pytest.mark.cluster

RATE = 200.0
MOMENT = """
import asyncio, os, pathlib
from swiftclaw import Agent

agent = Agent("moment")
here = pathlib.Path(__file__).parent


@agent.on_message
async def handle(message):
    await asyncio.sleep(0.05)
    return "ok"


@agent.health_check
async def check():
    ill = (here / f"ill-{os.getpid()}").exists()
    return {"status": "unhealthy", "reason": "database"} if ill else {"status": "healthy"}
"""


@dataclass
class Sent:
    """One request: when, who answered (if anybody said), with what."""

    began: float
    ended: float = 0.0
    status: int = 0  # 0: no answer at all
    instance: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass
class Load:
    """Requests at a steady rate, each on a connection of a pool; every one is accounted for."""

    url: str
    rate: float = RATE
    sent: list[Sent] = field(default_factory=list)

    async def run(self, seconds: float, then: Callable[[], Awaitable[None]] | None = None, at: float = 1.0) -> None:
        """For `seconds`; `then` is called once, `at` seconds after the start."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            tasks, started, acted = [], time.monotonic(), then is None
            for number in range(int(seconds * self.rate)):
                due = started + number / self.rate
                await asyncio.sleep(max(0, due - time.monotonic()))
                if not acted and time.monotonic() - started >= at and then is not None:
                    acted = True
                    await then()
                tasks.append(asyncio.create_task(self._one(client)))
            await asyncio.gather(*tasks)

    async def _one(self, client: aiohttp.ClientSession) -> None:
        sent = Sent(time.monotonic())
        self.sent.append(sent)
        try:
            async with client.post(f"{self.url}/agents/my-agent/messages", json={"message": "hi"}) as response:
                sent.instance = response.headers.get("x-swiftclaw-instance", "")
                body = await response.read()
                sent.status = response.status
                if not sent.ok:
                    sent.error = body.decode()
        except aiohttp.ClientError as error:
            sent.error = repr(error)
        sent.ended = time.monotonic()

    def failed(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.ok]


@pytest.fixture(scope="module")
def faulty(stopped: Cluster) -> Cluster:
    """The example with an agent that takes a moment, so that requests are in flight when something dies."""
    (stopped.folder / "moment.py").write_text(MOMENT)
    checks = {"interval": "1s", "unhealthyThreshold": 2, "healthyThreshold": 1}
    stopped.write({"my-agent": my_agent(agent="moment:agent", healthCheck=checks)})
    stopped.up()
    return stopped


async def test_a_killed_instance_loses_only_what_was_in_flight_on_it_and_is_replaced(faulty: Cluster) -> None:
    victim, pid = next(iter(faulty.healthy().items()))
    killed: list[float] = []

    async def kill() -> None:
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    load = Load(faulty.url)
    await load.run(6, kill)
    failed = load.failed()
    for sent in failed:
        assert sent.began <= killed[0] + 0.1, f"began {sent.began - killed[0]:.3f} s after the kill: {sent.error}"
        assert '"instance_failed"' in sent.error and victim in sent.error
    assert len(failed) <= 10, "200/s x 0.05 s over 7 instances is 1.4 in flight on one"
    back = until(lambda: faulty.healthy().get(victim), f"{victim} is back", 30)
    assert back != pid
    assert len(faulty.healthy()) == 7
    until(faulty.nothing_in_flight, "all counts back at 0", 30)


async def test_a_killed_controller_fails_no_request_and_finds_the_same_instances(faulty: Cluster) -> None:
    before, pid = faulty.healthy(), faulty.controller_pid()

    async def kill() -> None:
        os.kill(pid, signal.SIGKILL)

    load = Load(faulty.url)
    await load.run(8, kill)
    assert load.failed() == []
    until(lambda: faulty.controller_pid() != pid, "another Controller", 60)
    until(lambda: faulty.healthy() == before, "the same instances under the same names", 30)
    until(lambda: len(faulty.gateways()) == 2, "both gateways known again", 30)
    until(faulty.nothing_in_flight, "all counts back at 0", 30)


async def test_a_killed_gateway_leaves_new_connections_working(faulty: Cluster) -> None:
    pid = faulty.gateways()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not _alive(pid), "the process is gone", 10)
    for _ in range(50):
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{faulty.url}/agents/my-agent/messages", json={"message": "hi"}) as response,
        ):
            assert response.status == 200
    until(lambda: {g["pid"] for g in faulty.gateways()} - {pid} and len(faulty.gateways()) == 2, "a second gateway again", 60)
    until(faulty.nothing_in_flight, "all counts back at 0", 60)


async def test_an_instance_whose_own_check_fails_is_left_alone_not_restarted_and_comes_back(faulty: Cluster) -> None:
    before = faulty.healthy()
    victim, pid = next(iter(before.items()))
    flag = faulty.folder / f"ill-{pid}"
    out: list[float] = []

    async def fall_ill() -> None:
        flag.touch()
        await asyncio.to_thread(until, lambda: victim not in faulty.healthy(), f"{victim} out of rotation", 30)
        out.append(time.monotonic())

    load = Load(faulty.url, rate=100)
    try:
        await load.run(4, fall_ill)
        assert load.failed() == []
        late = [sent for sent in load.sent if sent.began > out[0] + 0.5]
        assert late and victim not in {sent.instance for sent in late}
        row = next(row for row in faulty.instances() if row["id"] == victim)
        assert (row["state"], row["health"]["reason"], row["pid"]) == ("unhealthy", "database", pid)
        assert "database" in faulty.run("instances", "my-agent", "--health").stdout
    finally:
        flag.unlink()
    until(lambda: faulty.healthy() == before, "the same process in rotation again", 30)


async def test_a_lost_state_folder_is_rebuilt_from_what_runs(faulty: Cluster) -> None:
    before, pid = faulty.healthy(), faulty.controller_pid()
    (faulty.folder / ".swiftclaw" / "state.json").unlink()

    async def kill() -> None:
        os.kill(pid, signal.SIGKILL)

    load = Load(faulty.url, rate=50)
    await load.run(10, kill)
    assert load.failed() == []
    until(lambda: faulty.controller_pid() != pid, "another Controller", 60)
    until(lambda: faulty.healthy() == before, "the same instances under the same names", 60)


async def test_another_version_takes_over_without_a_lost_request(faulty: Cluster) -> None:
    def write(version: str) -> None:
        faulty.write({"my-agent": my_agent(agent="moment:agent", version=version, regions={"us-east-1": {"instances": 2}})})

    async def replace() -> None:
        write("v2")
        tasks.append(asyncio.create_task(asyncio.to_thread(faulty.up)))

    tasks: list[asyncio.Task[object]] = []
    write("v1")
    await asyncio.to_thread(faulty.up)
    load = Load(faulty.url, rate=40)
    await load.run(20, replace)
    await asyncio.gather(*tasks)
    assert load.failed() == []
    until(lambda: {row["version"] for row in faulty.instances()} == {"v2"}, "only the new version runs", 60)
    assert len(faulty.healthy()) == 2


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
