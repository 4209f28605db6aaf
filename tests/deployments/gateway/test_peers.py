"""What gateways tell each other: two of them in one process, on real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from cluster.config import parse
from cluster.messages import KEY_HEADER, PEERS_PATH, AgentView, Member, Peer, Snapshot
from cluster.transport.listener import Listener, bind
from deployments.balancing.agents import AgentTable
from deployments.gateway import peers as peers_module
from deployments.gateway.admission import in_message
from deployments.gateway.edge import Edge
from deployments.gateway.peers import Peers
from deployments.gateway.reporter import Reporter
from deployments.request.exchange import Exchange
from deployments.upstream.connection_pool import ConnectionPool
from policies.base import Instance
from policies.errors import RateLimited
from policies.rate_limit import RateRule

KEY = "the-secret"
RULE = RateRule(10, 60.0, "user_id")
PATIENCE_S = 10.0


async def until(condition: Callable[[], Any], what: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, f"waited {PATIENCE_S:g} s for: {what}"
        await asyncio.sleep(0.01)


class Site:
    """One gateway without its public port, and its clock for rate limits, which stands still."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = 1e9 * (1 + len(name))  # no two need agree
        self.agents = AgentTable(Random(1))
        self.connections = ConnectionPool()
        self.edge = Edge(self.agents, Reporter(self.agents), self.connections, "local")
        self.edge.rate_limits.clock = lambda: self.now
        self.peers = Peers(name, self.agents, self.edge.rate_limits, self.connections)

    async def open(self) -> None:
        self.port = await self.peers.open("127.0.0.1")

    async def close(self) -> None:
        await self.peers.close()
        await self.connections.close()

    @property
    def peer(self) -> Peer:
        return Peer(self.name, "127.0.0.1", self.port)

    def admit(self, user: str) -> bool:
        async def never() -> Any: ...

        body = json.dumps({"user_id": user}).encode()
        exchange = Exchange({"type": "http", "raw_path": b"/", "headers": []}, never, never, 0)  # type: ignore[arg-type]
        try:
            self.edge.rate_limits.admit(exchange, "bot", lambda wanted: in_message(body, wanted))
        except RateLimited:
            return False
        return True

    def left(self, user: str) -> int:
        """How many more would be let through."""
        (limit,) = self.edge.rate_limits._limits["bot"].all
        look = limit.limiter.peek(user, self.now)
        return look.remaining + look.allowed

    def instance(self, replica: str) -> Instance:
        return next(b.instance for b in self.agents.pools["bot"].backends() if b.member.replica == replica)

    def send(self, replica: str) -> None:
        self.agents.pools["bot"].loads.sent(self.instance(replica))

    def done(self, replica: str) -> None:
        self.agents.pools["bot"].loads.done(self.instance(replica))

    def load(self, replica: str) -> float:
        return self.instance(replica).load


def meet(*sites: Site, also: tuple[Peer, ...] = (), rules: tuple[RateRule, ...] = (RULE,)) -> None:
    """A snapshot that names them all."""
    settings = parse({"agents": {"bot": {"agent": "m:x", "loadBalancing": {"strategy": "least-connections"}}}}, Path("/"))
    members = tuple(Member(f"instance-{n}", f"r{n}", "127.0.0.1", n, "v1", "local", 1, "healthy") for n in (1, 2))
    view = AgentView(settings.agents["bot"], False, members, rate_rules=rules)
    snapshot = Snapshot("1.1", KEY, settings.http, {"bot": view}, (), peers=(*(site.peer for site in sites), *also))
    for site in sites:
        site.agents.apply(replace(snapshot))
        site.edge.rate_limits._of("bot")


@pytest.fixture
async def open_site() -> AsyncIterator[Callable[[str], Any]]:
    async with AsyncExitStack() as stack:

        async def opened(name: str) -> Site:
            site = Site(name)
            stack.push_async_callback(site.close)
            await site.open()
            return site

        yield opened


@pytest.fixture
async def two(open_site: Callable[[str], Any]) -> tuple[Site, Site]:
    here, there = await open_site("a"), await open_site("bb")
    meet(here, there)
    return here, there


async def test_a_limit_is_exceeded_by_no_more_than_what_arrives_within_an_exchange(two: tuple[Site, Site]) -> None:
    here, there = two
    assert sum(here.admit("anna") for _ in range(6)) == 6
    await until(lambda: there.left("anna") == 4, "the other gateway to know of six")
    both = sum(here.admit("anna") + there.admit("anna") for _ in range(20))  # no exchange comes between
    assert both == 8, "four free ones, and once more what arrived meanwhile at the other"
    await until(lambda: here.left("anna") == there.left("anna") == 0, "both to know")
    assert not here.admit("anna") and not there.admit("anna")
    assert here.admit("ben") and there.admit("carl")


async def test_nobody_is_refused_below_the_limit_however_often_gateways_speak(two: tuple[Site, Site]) -> None:
    here, there = two
    let_through = 0
    for _ in range(5):
        let_through += here.admit("anna") + there.admit("anna")
        expected = 10 - let_through
        await until(lambda expected=expected: here.left("anna") == there.left("anna") == expected, f"{expected} left")  # type: ignore[misc]
    assert let_through == 10
    assert not here.admit("anna") and not there.admit("anna")


async def test_times_travel_as_ages_so_that_clocks_need_not_agree(two: tuple[Site, Site]) -> None:
    here, there = two
    here.admit("anna")
    here.now += 20  # the gateway is told of it twenty seconds later
    await until(lambda: there.left("anna") == 9, "the other gateway to know")
    there.now += 39.9
    assert there.left("anna") == 9
    there.now += 0.2
    assert there.left("anna") == 10


async def test_what_is_in_flight_here_is_load_there_until_it_is_done(two: tuple[Site, Site]) -> None:
    here, there = two
    for _ in range(3):
        here.send("r1")
    there.send("r1")
    await until(lambda: there.load("r1") == 4 and here.load("r1") == 4, "both to know of all four")
    assert here.agents.pools["bot"].loads.own(here.instance("r1")) == 3
    for _ in range(3):
        here.done("r1")
    await until(lambda: there.load("r1") == 1, "the end to be told")


async def test_a_gateway_that_dies_takes_its_requests_with_it(two: tuple[Site, Site]) -> None:
    here, there = two
    here.send("r1")
    here.send("r1")
    await until(lambda: there.load("r1") == 2, "the other gateway to know")
    await here.peers.close()
    await until(lambda: there.load("r1") == 0, "them to be forgotten")


async def test_idle_gateways_say_nothing(two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = two
    heard: list[Any] = []
    hear = there.peers.receive

    def noting(message: Any, now: float) -> None:
        heard.append(message)
        hear(message, now)

    monkeypatch.setattr(there.peers, "receive", noting)
    here.admit("anna")
    await until(lambda: heard, "the admission")
    here.admit("ben")
    await until(lambda: len(heard) == 2, "the next one")
    ticks = 0
    tick = here.peers.tick

    def counting(now: float) -> None:
        nonlocal ticks
        ticks += 1
        tick(now)

    monkeypatch.setattr(here.peers, "tick", counting)
    await until(lambda: ticks >= 5, "five rounds with nothing to tell")
    assert len(heard) == 2


async def test_a_new_gateway_is_told_what_was_let_through_before_it_came(
    two: tuple[Site, Site], open_site: Callable[[str], Any]
) -> None:
    here, there = two
    assert sum(here.admit("anna") for _ in range(4)) + sum(there.admit("anna") for _ in range(3)) == 7
    await until(lambda: here.left("anna") == there.left("anna") == 3, "both to know")
    newcomer = await open_site("ccc")
    meet(here, there, newcomer)
    await until(lambda: newcomer.left("anna") == 3, "the newcomer to know")
    assert here.left("anna") == there.left("anna") == 3, "nobody is told twice"


async def test_a_snapshot_that_leaves_a_gateway_out_for_a_moment_changes_nothing(two: tuple[Site, Site]) -> None:
    here, there = two
    here.admit("anna")
    await until(lambda: there.left("anna") == 9, "the other to be told")
    meet(here)  # as from a Controller that has just started and has heard of nobody else yet
    here.admit("anna")
    await until(lambda: there.left("anna") == 8, "the other to be told all the same")
    meet(here, there)
    here.admit("anna")
    await until(lambda: there.left("anna") == 7, "each of them to be told once")


async def test_what_was_sent_again_because_its_receipt_was_lost_counts_once(
    two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    monkeypatch.setattr(peers_module, "RETRY_S", 0.01)
    understood = there.peers._process
    lost: list[int] = []

    async def losing(exchange: Exchange) -> int:
        status = await understood(exchange)
        if len(lost) < 3:
            lost.append(status)
            return 500
        return status

    monkeypatch.setattr(there.peers, "_process", losing)
    here.admit("anna")
    await until(lambda: len(lost) == 3 and not here.peers._links["bb"].batch, "the message to be received at last")
    assert (lost, there.left("anna")) == ([204, 204, 204], 9)


async def test_only_who_knows_the_clusters_key_is_heard(two: tuple[Site, Site]) -> None:
    _, there = two
    message = {"gateway": "x", "number": 1, "admitted": [["bot", "key:user_id/sliding-window/60", {"anna": [0.0] * 10}]]}
    good = {"data": json.dumps({**message, "in_flight": {"r1": 5}})}
    url = f"http://127.0.0.1:{there.port}"
    async with aiohttp.ClientSession(url) as client:
        for key, status in ((None, 403), ("wrong", 403), ("", 403), (KEY, 204)):
            headers = {KEY_HEADER.decode(): key} if key is not None else {}
            async with client.post(PEERS_PATH, headers=headers, **good) as answer:
                assert answer.status == status
            assert there.left("anna") == (10 if status == 403 else 0)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect(PEERS_PATH)


@pytest.mark.parametrize(
    "message",
    ["", "[]", "{}", "null", '{"gateway": "x"}', "[" * 100_000, "9" * 10_000,
     '{"gateway": "x", "number": "1", "admitted": [], "in_flight": {}}',
     '{"gateway": "x", "number": 1, "admitted": [["bot"]], "in_flight": {}}',
     '{"gateway": "x", "number": 1, "admitted": [], "in_flight": {"r1": "many"}}'],
)  # fmt: skip
async def test_a_message_that_makes_no_sense_is_refused_and_harms_nothing(two: tuple[Site, Site], message: str) -> None:
    here, there = two
    async with aiohttp.ClientSession(f"http://127.0.0.1:{there.port}", headers={KEY_HEADER.decode(): KEY}) as client:
        async with client.post(PEERS_PATH, data=message) as answer:
            assert answer.status == 400
        async with client.get(PEERS_PATH) as answer:
            assert answer.status == 404
        async with client.post(PEERS_PATH, data=b" " * (peers_module.LARGEST + 1)) as answer:
            assert answer.status == 413
    here.admit("anna")
    await until(lambda: there.left("anna") == 9, "who makes sense to be heard")


async def test_peers_that_are_dead_or_never_answer_hold_up_nobody(
    open_site: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "BACKLOG", 50)
    here, there = await open_site("a"), await open_site("bb")
    with bind("127.0.0.1", 0) as silent, bind("127.0.0.1", 0) as closed:
        dead = closed.getsockname()[1]
        closed.close()
        meet(here, there, also=(Peer("mute", "127.0.0.1", silent.getsockname()[1]), Peer("dead", "127.0.0.1", dead)))
        for number in range(200):
            here.admit(f"user-{number}")
        await until(lambda: there.left("user-199") == 9, "the living one to know")
        await until(lambda: {"mute", "dead"} <= set(here.peers._links), "links to all")
        here.admit("anna")
        await until(lambda: there.left("anna") == 9, "the living one to hear the next, too")
        assert all(len(here.peers._links[name].backlog) <= 50 for name in ("mute", "dead"))
        began = time.monotonic()
        await here.peers.close()
        assert time.monotonic() - began < 5, "what waits for an answer is given up"


async def test_a_peer_that_comes_back_is_told_what_it_has_missed(open_site: Callable[[str], Any]) -> None:
    here, there = await open_site("a"), await open_site("bb")
    port, _ = there.port, await there.peers.close()
    meet(here, there)
    for _ in range(3):
        here.admit("anna")
    here.now += 5
    await until(lambda: "bb" in here.peers._links and here.peers._links["bb"].batch, "a message that cannot be delivered")
    there.peers = Peers("bb", there.agents, there.edge.rate_limits, there.connections)
    there.peers._listener = Listener(there.peers, bind("127.0.0.1", port), grace_s=0)
    await there.peers._listener.start()
    await until(lambda: there.left("anna") == 7, "it to be told")
    there.now += 55.5
    assert there.left("anna") == 10, "as old as they are by then"


async def test_a_snapshot_that_changes_the_limit_is_no_obstacle(two: tuple[Site, Site]) -> None:
    """One gateway has the new rules a moment before the other: what neither knows is not counted, nothing breaks."""
    here, there = two
    meet(here, there, rules=(RateRule(10, 60.0, "team"),))
    meet(there, rules=(RULE,))
    here.admit("anna")
    await until(lambda: "a" in there.peers._reports, "it to be heard")
    assert there.left("anna") == 10
    meet(here, there)
    there.admit("anna")
    await until(lambda: here.left("anna") == 9, "both to agree again")
