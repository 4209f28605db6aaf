"""Gateways agree on where each session lives: several of them in one process, on real sockets, under scaling and restarts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.config import parse
from cluster.messages import AgentView, Member, Peer, Snapshot
from deployments.balancing.agents import AgentTable
from deployments.gateway.edge import Edge
from deployments.gateway.peers import Peers
from deployments.gateway.reporter import Reporter
from deployments.gateway.session_exchange import HomesLink
from deployments.request.sessions import LONGEST
from deployments.upstream.connection_pool import ConnectionPool
from policies.base import Request


class Site:
    """One gateway without its public port."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.agents = AgentTable(Random(name), name)
        self.connections = ConnectionPool()
        self.reporter = Reporter(self.agents)
        self.edge = Edge(self.agents, self.reporter, self.connections, "local")
        self.peers = Peers(name, self.agents, self.edge.rate_limits, self.connections)

    async def open(self) -> None:
        self.port = await self.peers.open("127.0.0.1")

    async def close(self) -> None:
        await self.peers.close()
        await self.connections.close()

    async def answer(self, session: str) -> str:
        """As the forwarder does it: choose, announce, and settle before the client has its answer."""
        pool = self.agents.pools["bot"]
        now = time.monotonic()
        version = pool.version_for(session, None)
        request = Request("bot", session, now=now, version=version)
        lease = pool.wait_queue.take(request, (), now)
        if lease is None:
            lease = (await pool.wait_queue.wait(request, (), 5.0)).future.result()
        if lease.session_placed:
            self.peers.announce()
            await asyncio.sleep(0)
            await self.peers.settled()
        lease.release(200, time.monotonic(), ok=True)
        return lease.backend.member.replica


class Fleet:
    """The instances and gateways of one cluster, and the snapshot that names them."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.members = {f"r{n}": Member(f"instance-{n}", f"r{n}", "h", n, "v1", "local", 1, "healthy") for n in range(1, 8)}
        self.revision = 0

    def apply(self, *sites: Site, dead: tuple[Peer, ...] = ()) -> None:
        block = {"agent": "m:x", "loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}
        settings = parse({"agents": {"bot": block}}, Path("/"))
        view = AgentView(settings.agents["bot"], True, tuple(self.members.values()))
        self.revision += 1
        peers = (*(Peer(site.name, "127.0.0.1", site.port) for site in self.sites), *dead)
        snapshot = Snapshot(f"1.{self.revision}", "key", settings.http, {"bot": view}, ("11" * 32,), peers=peers)
        for site in sites or self.sites:
            site.agents.apply(snapshot)
            site.peers.tick(time.monotonic())


@pytest.fixture
async def fleet() -> AsyncIterator[Callable[[int], Any]]:
    async with AsyncExitStack() as stack:

        async def made(count: int) -> Fleet:
            fleet = Fleet()
            for number in range(count):
                await grow(fleet, f"g{number}")
            fleet.apply()
            return fleet

        async def grow(fleet: Fleet, name: str) -> Site:
            site = Site(name)
            await site.open()
            stack.push_async_callback(site.close)
            fleet.sites.append(site)
            return site

        made.grow = grow  # type: ignore[attr-defined]
        yield made


@pytest.mark.parametrize("gateways", [1, 2, 4])
async def test_a_session_has_one_home_at_any_number_of_gateways(fleet: Any, gateways: int) -> None:
    """Unevenly loaded gateways, instances that join, one that leaves: no session meets two homes while its own is there."""
    cluster, rng = await fleet(gateways), Random(gateways)
    for site in cluster.sites:  # each sees other loads
        for _ in range(rng.randrange(40)):
            site.agents.pools["bot"].choose(Request("bot", None, now=0.0), (), time.monotonic())
    homes: dict[str, list[str]] = {f"s{n}": [] for n in range(100)}
    for turn in range(6):
        if turn == 2:
            for n in (8, 9):
                cluster.members[f"r{n}"] = Member(f"instance-{n}", f"r{n}", "h", n, "v1", "local", 1, "healthy")
            for site in cluster.sites:  # not all at once
                cluster.apply(site)
                for session in rng.sample(sorted(homes), 10):
                    homes[session].append(await rng.choice(cluster.sites).answer(session))
        if turn == 4:
            cluster.members.pop("r3")
            cluster.apply()
        for session, met in homes.items():
            met.append(await rng.choice(cluster.sites).answer(session))
    for session, met in homes.items():
        distinct = list(dict.fromkeys(met))
        assert len(distinct) == 1 or (len(distinct) == 2 and distinct[0] == "r3"), (session, met)


async def test_gateways_that_meet_a_session_at_the_same_moment_agree(fleet: Any) -> None:
    cluster = await fleet(3)
    for number in range(50):
        met = await asyncio.gather(*(site.answer(f"s{number}") for site in cluster.sites))
        assert len(set(met)) == 1


async def test_a_session_placed_at_an_instance_that_a_gateway_does_not_know_yet_stays_there(fleet: Any) -> None:
    """Snapshots do not reach all gateways at once; the later one waits for its own."""
    cluster = await fleet(2)
    early, late = cluster.sites
    for n in range(8, 12):
        cluster.members[f"r{n}"] = Member(f"instance-{n}", f"r{n}", "h", n, "v1", "local", 1, "healthy")
    cluster.apply(early)
    homes = {f"s{n}": await early.answer(f"s{n}") for n in range(60)}
    waiting = {session: asyncio.create_task(late.answer(session)) for session in homes}
    await asyncio.sleep(0)
    unknown = {session for session, home in homes.items() if home not in {f"r{n}" for n in range(1, 8)}}
    assert unknown and {session for session, task in waiting.items() if not task.done()} >= unknown
    cluster.apply(late)
    assert {session: await task for session, task in waiting.items()} == homes


async def test_sessions_that_lose_their_home_are_counted_once_whichever_gateways_move_them(fleet: Any) -> None:
    cluster = await fleet(3)
    homes = {f"s{n}": await cluster.sites[n % 3].answer(f"s{n}") for n in range(60)}
    for replica, state in (("r1", "draining"), ("r2", "healthy")):
        cluster.members[replica] = replace(cluster.members[replica], state=state)
        cluster.apply()
        del cluster.members[replica]
        cluster.apply()
    for session in homes:
        await asyncio.gather(*(site.answer(session) for site in cluster.sites))
    total: Counter[tuple[str, str]] = Counter()
    for site in cluster.sites:
        site.reporter.closing = True  # as when it stops: it does not wait for confirmations
        total.update(site.reporter.observation().moved_sessions)
    lost = Counter(homes.values())
    assert lost["r1"] and lost["r2"]
    assert total == {("bot", "drained"): lost["r1"], ("bot", "died"): lost["r2"]}


async def test_a_gateway_that_starts_knows_every_home_before_it_serves(fleet: Any) -> None:
    cluster = await fleet(2)
    homes = {f"s{n}": await cluster.sites[n % 2].answer(f"s{n}") for n in range(300)}
    for n in range(8, 15):
        cluster.members[f"r{n}"] = Member(f"instance-{n}", f"r{n}", "h", n, "v1", "local", 1, "healthy")
    new = await fleet.grow(cluster, "new")
    cluster.apply()
    assert await new.peers.sessions.catch_up("new", 10)
    assert {session: await new.answer(session) for session in homes} == homes


async def test_the_longest_names_that_clients_can_choose_do_not_stop_the_exchange(fleet: Any) -> None:
    cluster = await fleet(2)
    pool = cluster.sites[0].agents.pools["bot"]
    names = [("\N{GRINNING FACE}" * LONGEST)[len(str(n)) :] + str(n) for n in range(6_000)]
    for name in names:
        pool.choose(Request("bot", name, now=time.monotonic()), (), time.monotonic()).release(200, 0.0)
    new = await fleet.grow(cluster, "new")
    cluster.apply()
    # The timeout is for each message: however many homes there are, a gateway waits while they arrive.
    assert await new.peers.sessions.catch_up("new", 10)
    assert len(new.agents.pools["bot"].sessions.homes) == len(names)


async def test_a_dead_gateway_delays_no_answer_for_long_and_is_not_waited_for_again(fleet: Any) -> None:
    cluster = await fleet(2)
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    cluster.apply(dead=(Peer("dead", "127.0.0.1", silent.sockets[0].getsockname()[1]),))
    homes = {f"s{n}": await asyncio.wait_for(cluster.sites[0].answer(f"s{n}"), 5) for n in range(5)}
    assert {session: await cluster.sites[1].answer(session) for session in homes} == homes
    assert not await cluster.sites[0].peers.sessions.catch_up("g0", 0.05)
    silent.close()


async def test_a_message_that_was_lost_is_sent_again(fleet: Any) -> None:
    cluster = await fleet(2)
    port = cluster.sites[1].port
    link = cluster.sites[0].peers._links["g1"]
    link.peer = Peer("g1", "127.0.0.1", 1)
    home = await cluster.sites[0].answer("s")
    link.peer = Peer("g1", "127.0.0.1", port)
    pool = cluster.sites[1].agents.pools["bot"]
    ends = time.monotonic() + 10
    while pool.sessions.homes.peek("s") is None and time.monotonic() < ends:
        await asyncio.sleep(0.02)
    assert pool.sessions.homes.peek("s").replica == home


async def test_a_link_states_what_it_has_not_delivered() -> None:
    link = HomesLink()
    assert link.caught_up and link.pending and link.settled() is None
    link.received()
    assert not link.pending
    assert repr(link) == "<HomesLink connected: 0 of 0 homes not received>"
