"""A whole data plane in one process, without Ray: real sockets, one gateway, any number of instances."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from cluster.config import parse
from cluster.instance_state import InstanceState
from cluster.messages import AgentView, InstanceSpec, Member, RegistrationReply, Snapshot, VersionShare
from cluster.transport.http_protocol import ConnectionLimits
from cluster.transport.listener import Listener, bind
from deployments.balancing.agents import AgentTable
from deployments.gateway.edge import Edge
from deployments.gateway.gateway import tick_forever
from deployments.gateway.reporter import Reporter
from deployments.instance.lifespan import Lifespan
from deployments.instance.server import InstanceServer
from deployments.proxy.client_connection import ClientConnection
from deployments.upstream.connection_pool import ConnectionPool
from policies.rate_limit import RateRule
from swiftclaw import Agent

KEY = "the-secret"


@dataclass
class DataPlane:
    """`url` is the gateway's. Changing `blocks`, adding or ending instances takes effect with `announce()`."""

    blocks: dict[str, Any] = field(default_factory=dict)
    http: dict[str, Any] = field(default_factory=dict)
    members: dict[str, list[Member]] = field(default_factory=dict)
    hosts: dict[str, InstanceServer] = field(default_factory=dict)
    listeners: dict[str, Listener] = field(default_factory=dict)
    lifespans: dict[str, Lifespan] = field(default_factory=dict)
    revision: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    session_keys: tuple[str, ...] = ("11" * 32,)
    limits: ConnectionLimits | None = None
    tls: ssl.SSLContext | None = None
    rules: dict[str, tuple[RateRule, ...]] = field(default_factory=dict)  # what the agents' code limits
    coming: set[str] = field(default_factory=set)  # agents that an instance is started for when a request waits
    starting: set[str] = field(default_factory=set)  # agents that an instance is starting for in any case
    shares: dict[str, VersionShare] = field(default_factory=dict)  # which version gets what

    async def start(self) -> None:
        self.agents = AgentTable(Random(1), "g")
        self.reporter = Reporter(self.agents)
        self.connections = ConnectionPool()
        self.edge = Edge(self.agents, self.reporter, self.connections, "local")
        refused = self.reporter.rejected
        self.gateway = Listener(
            self.edge, bind("127.0.0.1", 0), limits=self.limits, tls=self.tls, date=True, grace_s=0, on_rejected=refused,
            protocol=partial(ClientConnection, self.edge.receive),
        )  # fmt: skip
        await self.gateway.start()
        self.ticking = asyncio.create_task(tick_forever(self.agents, 0.02))
        self.announce()
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.gateway.port}"
        self.client = aiohttp.ClientSession(self.url, connector=aiohttp.TCPConnector(limit=0))

    async def stop(self) -> None:
        self.ticking.cancel()
        await self.client.close()
        await asyncio.gather(self.gateway.close(), *(self.end(name) for name in list(self.listeners)))  # each takes its time
        await self.connections.close()

    async def add(
        self, agent: Agent, count: int = 1, region: str = "local", version: str = "v1", priority: int = 1
    ) -> list[str]:
        """Start instances; their names."""
        names = []
        self.rules[agent.name] = agent.rate_limits
        for _ in range(count):
            name = f"instance-{len(self.members.get(agent.name, [])) + 1}"
            spec = InstanceSpec(agent.name, "tests:agent", "/", version, region, f"{agent.name}.{version}.{region}")
            lifespan = Lifespan(agent.app)
            await lifespan.startup()
            replica = f"{agent.name}-{name}"
            host = InstanceServer(agent, spec, RegistrationReply(name, KEY), replica, lifespan.state)
            listener = Listener(host, bind("127.0.0.1", 0), grace_s=0)
            await listener.start()
            member = Member(name, replica, "127.0.0.1", listener.port, version, region, priority, "healthy")
            self.members.setdefault(agent.name, []).append(member)
            self.hosts[member.replica] = host
            self.listeners[member.replica] = listener
            self.lifespans[member.replica] = lifespan
            names.append(name)
        self.announce()
        return names

    async def end(self, replica: str) -> None:
        """Its port refuses connections from now on; the gateway is not told."""
        await self.listeners.pop(replica).close()
        await self.lifespans.pop(replica).shutdown(5)

    def mark(self, agent: str, name: str, state: InstanceState) -> None:
        self.members[agent] = [replace(m, state=state) if m.id == name else m for m in self.members[agent]]
        self.announce()

    def announce(self) -> None:
        self.revision += 1
        agents = {name: {"agent": "tests:agent", **self.blocks.get(name, {})} for name in self.members}
        settings = parse({"agents": agents, "http": self.http, **self.args}, Path("/"))
        views = {
            name: AgentView(
                settings.agents[name],
                bool(settings.agents[name].load_balancing.session_affinity.enabled),
                tuple(members),
                rate_rules=self.rules.get(name, ()),
                versions=self.shares.get(name),
                may_be_none=name in self.coming,
                coming=name in self.coming | self.starting,
            )
            for name, members in self.members.items()
        }
        snapshot = Snapshot(
            version=str(self.revision),
            key=KEY,
            http=settings.http,
            agents=views,
            session_keys=self.session_keys,
            client_regions=settings.client_regions,
            trusted_proxies=settings.trusted_proxies,
            distances_ms=settings.distances_ms,
        )
        self.reporter.track(self.agents.apply(snapshot))

    def active(self) -> int:
        """Requests in flight as the gateway counts them, and as the instances do."""
        here = sum(backend.tally.active for pool in self.agents.pools.values() for backend in pool.backends())
        return here + sum(host.in_flight for host in self.hosts.values())


@pytest.fixture
async def plane() -> AsyncIterator[DataPlane]:
    plane = DataPlane()
    async with AsyncExitStack() as stack:
        await plane.start()
        stack.push_async_callback(plane.stop)
        yield plane
