"""Sessions over real connections: several gateways and instances in one process, and everything that may change meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from cluster.config import parse
from cluster.instance_state import InstanceState
from cluster.messages import AgentView, InstanceSpec, Member, Peer, RegistrationReply, Snapshot
from cluster.transport.listener import Listener, bind
from deployments.balancing.agents import AgentTable
from deployments.gateway.edge import Edge
from deployments.gateway.peers import Peers
from deployments.gateway.reporter import Reporter
from deployments.instance.server import InstanceServer
from deployments.proxy.client_connection import ClientConnection
from deployments.upstream.connection_pool import ConnectionPool
from swiftclaw import Agent

log = logging.getLogger("tests.sessions")

KEY = "the-secret"
SESSIONS = int(os.environ.get("SESSIONS", "60"))  # 1000 when measured by hand; every one is asked in each turn
AT_ONCE = 24


class Site:
    """One gateway."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.agents = AgentTable(Random(name), name)
        self.connections = ConnectionPool()
        self.edge = Edge(self.agents, Reporter(self.agents), self.connections, "local")
        self.peers = Peers(name, self.agents, self.edge.rate_limits, self.connections)
        self.edge.share_homes(self.peers)
        self.listener = Listener(
            self.edge, bind("127.0.0.1", 0), grace_s=0, protocol=partial(ClientConnection, self.edge.receive)
        )

    async def open(self) -> None:
        self.port = await self.peers.open("127.0.0.1")
        self.ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.agents.tick(time.monotonic())

    async def close(self) -> None:
        self.ticking.cancel()
        await self.listener.close()
        await self.peers.close()
        await self.connections.close()


class Town:
    """Gateways, instances, and what the Controller would tell them; `rng`: which gateway a request meets."""

    def __init__(self, rng: Random, kind: str) -> None:
        self.rng, self._kind = rng, kind
        self.sites: list[Site] = []
        self.members: dict[str, Member] = {}
        self.listeners: dict[str, Listener] = {}
        self._revision = 0

    async def add_instances(self, count: int = 1) -> None:
        for _ in range(count):
            number = next(n for n in range(1, 99) if f"instance-{n}" not in {member.id for member in self.members.values()})
            replica = f"r{len(self.listeners) + 1}"
            agent = Agent("bot")

            @agent.on_message
            async def handle(message: str, replica: str = replica) -> str:
                await asyncio.sleep(float(message))
                return replica

            spec = InstanceSpec("bot", "tests:agent", "/", "v1", "local", "bot.v1.local")
            server = InstanceServer(agent, spec, RegistrationReply(f"instance-{number}", KEY), replica, {})
            self.listeners[replica] = listener = Listener(server, bind("127.0.0.1", 0), grace_s=0)
            await listener.start()
            member = Member(f"instance-{number}", replica, "127.0.0.1", listener.port, "v1", "local", 1, "healthy")
            self.members[replica] = member

    async def add_gateway(self) -> None:
        site = Site(f"g{self._revision}-{len(self.sites)}")
        await site.open()
        self.sites.append(site)
        self.apply()
        assert await site.peers.sessions.catch_up(site.name, 10)
        await site.listener.start()

    def mark(self, replica: str, state: InstanceState) -> None:
        self.members[replica] = replace(self.members[replica], state=state)

    def apply(self, *sites: Site) -> None:
        """Send the snapshot, to all gateways or to these."""
        balancing = {"strategy": "least-connections", "sessionAffinity": {"enabled": True, "type": self._kind}}
        settings = parse({"agents": {"bot": {"agent": "m:x", "loadBalancing": balancing}}}, Path("/"))
        view = AgentView(settings.agents["bot"], True, tuple(self.members.values()))
        self._revision += 1
        peers = tuple(Peer(site.name, "127.0.0.1", site.port) for site in self.sites)
        snapshot = Snapshot(f"1.{self._revision}", KEY, settings.http, {"bot": view}, ("11" * 32,), peers=peers)
        for site in sites or self.sites:
            site.agents.apply(snapshot)
            site.peers.tick(time.monotonic())

    async def change(self, what: str) -> None:
        """One change, in the midst of requests. Gateways receive the snapshot of it one after the other."""
        victim = self.rng.choice([replica for replica, member in self.members.items() if member.state == "healthy"])
        if what == "an instance is added":
            await self.add_instances()
        elif what == "an instance drains":
            self.mark(victim, "draining")
            await self._spread()
            await asyncio.sleep(0.3)
            self.mark(victim, "stopped")
            await self._spread()
            await asyncio.sleep(0.1)
            await self.listeners[victim].close()
            del self.members[victim]
        elif what == "an instance is killed and replaced":
            await self.listeners[victim].close()  # and the Controller notices it late
            await asyncio.sleep(0.3)
            del self.members[victim]
            await self.add_instances()
        elif what == "a gateway is killed":
            await self.sites.pop(0).close()
        elif what == "a gateway is added":
            await self.add_gateway()
        await self._spread()

    async def _spread(self) -> None:
        for site in self.rng.sample(self.sites, len(self.sites)):
            self.apply(site)
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        await asyncio.gather(*(site.close() for site in self.sites))
        await asyncio.gather(*(listener.close() for listener in self.listeners.values()))


class Clients:
    """Each session's requests, every one on a connection of its own; `met`: the process that answered each of them."""

    def __init__(self, town: Town, kind: str, count: int) -> None:
        self.town, self.kind = town, kind
        self.met: dict[int, list[str]] = {number: [] for number in range(count)}

    async def turn(self) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with places:
                self.met[number].append(await self.ask(number))

        await asyncio.gather(*(one(number) for number in self.town.rng.sample(sorted(self.met), len(self.met))))

    async def ask(self, number: int, seconds: float = 0.0) -> str:
        body, headers, address = {"message": str(seconds)}, {}, "127.0.0.1"
        if self.kind == "client-ip":
            address = f"127.7.{number // 250}.{number % 250 + 1}"
        elif number % 2:
            headers["x-session-id"] = f"session-{number}"
        else:
            body["session_id"] = f"session-{number}"
        for _ in range(40):
            url = f"http://127.0.0.1:{self.town.rng.choice(self.town.sites).listener.port}/agents/bot/messages"
            connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
            try:
                async with (
                    aiohttp.ClientSession(connector=connector) as client,
                    client.post(url, json=body, headers=headers) as response,
                ):
                    if response.status == 200:
                        return str((await response.json())["reply"])
            except (aiohttp.ClientError, OSError):
                pass  # the gateway was killed
            await asyncio.sleep(0.05)
        raise AssertionError(f"session {number} has no answer")

    def moves(self) -> dict[int, tuple[str, ...]]:
        """Sessions that met more than one home, and the homes in order. None may return to a home that it has left."""
        homes = {number: tuple(home for home, _ in groupby(answers)) for number, answers in self.met.items()}
        assert all(len(met) == len(set(met)) for met in homes.values()), homes
        return {number: met for number, met in homes.items() if len(met) > 1}


@pytest.fixture
async def towns() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def made(gateways: int, kind: str) -> Town:
            town = Town(Random(gateways), kind)
            stack.push_async_callback(town.close)
            await town.add_instances(7)
            for _ in range(gateways):
                await town.add_gateway()
            return town

        yield made


LEAVING = ("an instance drains", "an instance is killed and replaced")
CHANGES = (
    "nothing",
    "an instance is added",
    "an instance drains",
    "a gateway is added",
    "an instance is added",
    "a gateway is killed",
    "an instance is killed and replaced",
)


@pytest.mark.parametrize(("gateways", "kind"), [(1, "client-ip"), (2, "header"), (3, "client-ip"), (4, "header")])
async def test_a_session_moves_only_when_its_home_has_left_and_then_once(towns: Any, gateways: int, kind: str) -> None:
    """Uneven loads, and each change in the midst of a turn; the name is in a header, in the body, or the client's address."""
    town = await towns(gateways, kind)
    clients = Clients(town, kind, SESSIONS)
    busy = [asyncio.create_task(clients.ask(900 + n % 3, 0.2)) for n in range(20)]
    await clients.turn()
    expected = 0
    for change in CHANGES:
        before = set(town.members)
        last = {number: answers[-1] for number, answers in clients.met.items()}
        await asyncio.gather(clients.turn(), town.change(change))
        left = before - set(town.members)
        assert bool(left) == (change in LEAVING)
        await clients.turn()
        moved = {number for number, answers in clients.met.items() if answers[-1] != last[number]}
        assert moved == {number for number, home in last.items() if home in left}, change
        expected += len(moved)
    await asyncio.gather(*busy)
    moves = clients.moves()
    log.info("%d gateways, %s: %d sessions, %d moves", gateways, kind, len(clients.met), expected)
    assert sum(len(met) - 1 for met in moves.values()) == expected > 0
