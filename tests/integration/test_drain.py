"""Planned changes while requests, streams and sessions run: nothing is lost. And the process that has to be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import Cluster, until

pytestmark = pytest.mark.cluster

REQUEST_TIMEOUT_S = 6.0
PIECES, PIECE_S = 15, 0.2
SESSIONS = 8
SLOW = """
import asyncio, time
from swiftclaw import Agent

agent = Agent("slow")


async def pieces(count):
    for number in range(count):
        await asyncio.sleep(0.2)
        yield str(number)


@agent.on_message
async def handle(message):
    what, _, number = message.partition(" ")
    if what == "stream":
        return pieces(int(number))
    if what == "block":
        time.sleep(float(number))
    else:
        await asyncio.sleep(float(number))
    return "ok"
"""


@dataclass
class Sent:
    """One request: when, who answered, with what. `error`: empty when it was answered in full."""

    session: str
    began: float
    ended: float = 0.0
    instance: str = ""
    version: str = ""
    error: str = ""


@dataclass
class Visitors:
    """Steady traffic of three kinds: single requests, streams of some seconds, sessions that go on."""

    cluster: Cluster
    agent: str = "my-agent"
    sent: list[Sent] = field(default_factory=list)
    cookies: dict[str, str] = field(default_factory=dict)  # by session

    async def run(self, then: Callable[[], Awaitable[None]], after_s: float = 2.0) -> None:
        """Until `then` has ended, which begins `after_s` after the start, and a moment longer."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            going = True

            async def again_and_again(every_s: float, message: str, session: str = "", overlapping: bool = False) -> None:
                under_way = []
                while going:
                    request = asyncio.create_task(self.ask(client, message, session))
                    under_way.append(request)
                    if not overlapping:
                        await request
                    await asyncio.sleep(every_s)
                await asyncio.gather(*under_way)

            visitors = [
                asyncio.create_task(again_and_again(0.05, "wait 0.05", overlapping=True)),
                asyncio.create_task(again_and_again(0.5, f"stream {PIECES}", overlapping=True)),
                *(asyncio.create_task(again_and_again(0.2, "wait 0.05", f"s{n}")) for n in range(SESSIONS)),
            ]
            try:
                await asyncio.sleep(after_s)
                await then()
                await asyncio.sleep(1)
            finally:
                going = False
                await asyncio.gather(*visitors)

    async def ask(self, client: aiohttp.ClientSession, message: str, session: str = "") -> Sent:
        sent = Sent(session, time.monotonic())
        self.sent.append(sent)
        body: dict[str, Any] = {"message": message, "stream": message.startswith("stream")}
        try:
            async with client.post(
                f"{self.cluster.url}/agents/{self.agent}/messages",
                json=body,
                headers={"cookie": self.cookies[session]} if session in self.cookies else {},
            ) as response:
                given = response.headers.get("set-cookie")
                if session and given:
                    self.cookies[session] = given.partition(";")[0]
                sent.instance = response.headers.get("x-swiftclaw-instance", "")
                sent.version = response.headers.get("x-swiftclaw-version", "")
                text = await response.text()
                whole = text.endswith("data: [DONE]\n\n") and text.count("delta") == int(message.split()[1])
                if response.status != 200 or (body["stream"] and not whole):
                    sent.error = f"{response.status} {text}"
        except aiohttp.ClientError as error:
            sent.error = repr(error)
        sent.ended = time.monotonic()
        return sent

    @property
    def failed(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.error]

    def of(self, session: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.session == session]


@dataclass
class Seen:
    """When the Controller first showed an instance in a state."""

    cluster: Cluster
    first: dict[tuple[str, str], float] = field(default_factory=dict)

    async def follow(self) -> None:
        while True:
            with contextlib.suppress(OSError, ValueError):
                await asyncio.to_thread(self.look)
            await asyncio.sleep(0.2)

    def look(self) -> list[dict[str, Any]]:
        rows, now = self.cluster.instances(), time.monotonic()
        for row in rows:
            self.first.setdefault((f"{row['version']} {row['id']}", row["state"]), now)
        return rows


def block(instances: int, version: str = "v1", **blocks: Any) -> dict[str, Any]:
    return {
        "agent": "slow:agent",
        "version": version,
        "regions": {"us-east-1": {"instances": instances}},
        "limits": {"requestTimeout": f"{REQUEST_TIMEOUT_S}s"},
        "healthCheck": {"interval": "1s"},
        **blocks,
    }


STICKY: dict[str, Any] = {"loadBalancing": {"sessionAffinity": {"enabled": True}}}


@pytest.fixture(scope="module")
def running(stopped: Cluster) -> Cluster:
    (stopped.folder / "slow.py").write_text(SLOW)
    stopped.write({"my-agent": block(3, **STICKY), "other": block(2)})
    stopped.up()
    return stopped


def _assert_sessions_stayed(visitors: Visitors, seen: Seen, gone: set[str]) -> None:
    """Each session kept its instance until the drain's deadline, if that one left, else for good."""
    homes = set()
    for number in range(SESSIONS):
        answered = visitors.of(f"s{number}")
        home = f"{answered[0].version} {answered[0].instance}"
        homes.add(home)
        elsewhere = [sent for sent in answered if f"{sent.version} {sent.instance}" != home]
        if home not in gone:
            assert not elsewhere, f"s{number} left {home}, which stays"
            continue
        draining = seen.first[home, "draining"]
        assert elsewhere, f"s{number} still at {home}"
        assert elsewhere[0].began - draining >= REQUEST_TIMEOUT_S - 2, f"s{number} left {home} too early"
    assert homes & gone, "no session lived on an instance that left: this test has shown nothing"


async def test_scaling_down_loses_no_request_no_stream_and_no_session_before_its_time(running: Cluster) -> None:
    visitors, seen = Visitors(running), Seen(running)

    async def scale() -> None:
        running.write({"my-agent": block(1, **STICKY), "other": block(2)})
        await asyncio.to_thread(running.up)
        await asyncio.to_thread(until, lambda: len(running.instances()) == 1, "one instance is left", 60)

    looking = asyncio.create_task(seen.follow())
    await visitors.run(scale)
    looking.cancel()
    assert visitors.failed == []
    gone = {name for name, state in seen.first if state == "draining"}
    assert len(gone) == 2
    _assert_sessions_stayed(visitors, seen, gone)
    until(running.nothing_in_flight, "all counts back at 0", 30)


async def test_another_version_takes_over_and_sessions_move_when_the_old_one_has_had_its_time(running: Cluster) -> None:
    visitors, seen = Visitors(running), Seen(running)

    async def replace() -> None:
        running.write({"my-agent": block(2, "v2", **STICKY), "other": block(2)})
        await asyncio.to_thread(running.up)
        await asyncio.to_thread(until, lambda: {row["version"] for row in running.instances()} == {"v2"}, "only v2", 60)

    looking = asyncio.create_task(seen.follow())
    await visitors.run(replace)
    looking.cancel()
    assert visitors.failed == []
    _assert_sessions_stayed(visitors, seen, {name for name, state in seen.first if state == "draining"})
    last = max(sent.began for sent in visitors.sent)
    assert {sent.version for sent in visitors.sent if sent.began > last - 0.5} == {"v2"}


async def test_an_agent_taken_out_of_the_file_finishes_what_it_has_and_is_unknown_then(running: Cluster) -> None:
    visitors = Visitors(running, "other")
    told: list[float] = []

    async def remove() -> None:
        told.append(time.monotonic())
        running.write({"my-agent": block(2, "v2", **STICKY)})
        await asyncio.to_thread(running.up)
        until(lambda: len(visitors.failed) > 20, "the agent is unknown", 30)

    await visitors.run(remove, after_s=4)
    assert {sent.error[:3] for sent in visitors.failed} == {"404"}
    assert all('"unknown_agent"' in sent.error for sent in visitors.failed)
    assert min(sent.began for sent in visitors.failed) > told[0]
    unknown_from = min(sent.began for sent in visitors.failed)
    assert any(sent.ended > unknown_from + PIECE_S and not sent.error for sent in visitors.sent), "no stream was open then"


async def test_an_instance_that_nobody_used_leaves_at_once_whatever_the_timeouts(running: Cluster) -> None:
    limits: dict[str, Any] = {"limits": {"requestTimeout": "1h"}, "timeouts": {"request": "1h"}, "drainTimeout": "2h"}
    running.write({"my-agent": block(2, "v2", **STICKY), "idle": block(2, **{**STICKY, **limits})})
    await asyncio.to_thread(running.up)
    running.write({"my-agent": block(2, "v2", **STICKY), "idle": block(1, **{**STICKY, **limits})})
    await asyncio.to_thread(running.up)
    until(lambda: len(running.instances("idle")) == 1, "one of two has left", 20)


async def test_a_stuck_event_loop_is_restarted_and_one_that_was_only_slow_is_not(running: Cluster) -> None:
    before = running.healthy()
    stuck, slow = sorted(before)
    async with aiohttp.ClientSession() as client:
        visitors = Visitors(running)
        at: dict[str, str] = {}  # instance -> a session that lives there
        for number in range(100):
            sent = await visitors.ask(client, "wait 0", f"w{number}")
            at.setdefault(sent.instance, sent.session)
            if len(at) == 2:
                break
        blocked = [
            asyncio.create_task(visitors.ask(client, "block 600", at[stuck])),
            asyncio.create_task(visitors.ask(client, "block 6.5", at[slow])),
        ]
        rows: dict[str, set[str]] = {stuck: set(), slow: set()}

        def look() -> bool:
            for row in running.instances():
                rows.setdefault(row["id"], set()).add(row["state"])
            healthy = running.healthy()
            return healthy.get(slow) == before[slow] and before[stuck] not in healthy.values() and len(healthy) == 2

        await asyncio.to_thread(until, lambda: "ejected" in rows[stuck] or (look() and False), "the stuck one is out", 30)
        assert _alive(before[stuck]), "it is out of rotation long before it is restarted"
        await asyncio.to_thread(until, look, "another process for the stuck one, the same for the slow one", 90)
        until(lambda: not _alive(before[stuck]), "the stuck process is gone", 30)
        for sent in await asyncio.gather(*blocked):
            assert not sent.error or json.loads(sent.error[4:])["error"]["type"] in ("instance_failed", "request_timeout")
        answered = await visitors.ask(client, "wait 0", at[stuck])
        assert answered.error == ""


async def test_down_waits_for_streams_says_so_and_cuts_what_is_left_with_a_named_error(running: Cluster) -> None:
    async with aiohttp.ClientSession() as client:
        visitors = Visitors(running)
        short = [asyncio.create_task(visitors.ask(client, f"stream {PIECES}")) for _ in range(6)]
        single = [asyncio.create_task(visitors.ask(client, "wait 3")) for _ in range(6)]
        endless = asyncio.create_task(visitors.ask(client, "stream 3000"))
        until_there = lambda: sum(row["active_connections"] for row in running.instances()) >= 13  # noqa: E731
        await asyncio.to_thread(until, until_there, "all are in flight", 20)
        down = await asyncio.to_thread(running.run, "down", "--timeout", "8")
        assert down.returncode == 0, down.stderr
        assert [sent.error for sent in await asyncio.gather(*short, *single)] == [""] * 12
        cut = await asyncio.wait_for(endless, 10)
    assert "draining: waiting for " in down.stderr and " of my-agent" in down.stderr
    assert "event: error" in cut.error and '"instance_failed"' in cut.error


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
