"""The gateway: a Serve replica that listens on the public port itself and applies the Controller's snapshots.

Also callable by Serve handle (`ask`, `stream`): such a request passes through the edge like one over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from cluster.controller_api import ControlApi
from cluster.messages import GatewayHello, Observation
from cluster.transport.listener import Listener
from cluster.transport.rpc import ControllerUnavailable, RpcClient
from cluster.transport.running_clock import running_clock
from cluster.transport.tls import Certificate
from deployments.balancing.agents import AgentTable
from deployments.gateway.counts_file import CountsFile, files, held
from deployments.gateway.edge import Edge
from deployments.gateway.homes_file import HomesFile
from deployments.gateway.peers import Peers
from deployments.gateway.region_rtt import measure_forever
from deployments.gateway.reporter import Reporter
from deployments.proxy.in_process import InProcessClient, events
from deployments.upstream.connection_pool import ConnectionPool
from policies.errors import InstanceFailed

log = logging.getLogger("swiftclaw.gateway")

OBSERVE_EVERY_S = 1.0
TICK_S = 0.1  # how late a timeout may be noticed
FIRST_SNAPSHOT_S = 10.0  # how long a new gateway waits for its first snapshot before it accepts connections without one
CATCH_UP_S = 3.0  # how long a new gateway waits for the next session homes that the others know
CALL_S = 20.0  # for a call to the Controller; after that it is made again


class Gateway:
    """One gateway process."""

    def __init__(
        self,
        hello: GatewayHello,
        controller: RpcClient,
        agents: AgentTable,
        reporter: Reporter,
        edge: Edge,
        listener: Listener | None,
        peers: Peers,
        connections: ConnectionPool,
        *,
        counts_file: CountsFile | None = None,
        homes_file: HomesFile | None = None,
        certificate: Certificate | None = None,
        export: Callable[[Observation], None] = lambda _: None,
    ) -> None:
        """`listener`: None where only workers listen on the public port. `export`: also gets every observation, for Ray's
        metrics."""
        self._hello, self._controller = hello, controller
        self._agents, self._reporter, self._edge = agents, reporter, edge
        self._listener, self._peers, self._connections = listener, peers, connections
        self._counts_file, self._homes_file = counts_file, homes_file
        self._certificate, self._export = certificate, export
        self._informed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when it accepts connections: with its first snapshot, or without one after a while."""
        works = (self._follow_snapshots(), self._report(), tick_forever(self._agents))
        self._tasks = [asyncio.create_task(work) for work in works]
        self._tasks.append(asyncio.create_task(measure_forever(self._agents, self._connections, self._hello.settings.region)))
        if self._certificate is not None:
            self._tasks.append(asyncio.create_task(self._certificate.follow()))
        try:
            await asyncio.wait_for(self._informed.wait(), FIRST_SNAPSHOT_S)
        except asyncio.TimeoutError:
            log.warning("no snapshot from the Controller after %g s; answering 503 until one arrives", FIRST_SNAPSHOT_S)
        if not await self._peers.sessions.catch_up(self._hello.gateway, CATCH_UP_S):
            log.warning("another gateway has sent no session homes for %g s; starting without them", CATCH_UP_S)
        if self._homes_file is not None and self._agents.snapshot is not None:
            await self._peers.sessions.recover(self._homes_file)
        if self._listener is not None:
            await self._listener.start()

    async def ask(self, agent: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any]:
        """POST /agents/{agent}/messages by handle: (status, the JSON that an HTTP client would get)."""
        call = InProcessClient(agent, {**body, "stream": False}, headers)
        call.send(self._edge.receive)
        content = await call.whole()
        try:
            return call.status, json.loads(content)
        except ValueError:
            error = InstanceFailed("the response ended before it was complete", agent=agent)
            return error.status, {"error": {"type": error.type, "message": error.message, "agent": agent}}

    async def stream(self, agent: str, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[tuple[str, Any]]:
        """The same, streamed: ("delta", text) …, or ("error", the error's JSON)."""
        call = InProcessClient(agent, {**body, "stream": True}, headers)
        call.send(self._edge.receive)
        try:
            async for event in events(call):
                yield event
        finally:
            call.leave()

    async def _follow_snapshots(self) -> None:
        """Long-poll the Controller for snapshots; the last one holds until the next arrives."""
        while True:
            version = self._agents.snapshot.version if self._agents.snapshot else None
            try:
                hello = replace(self._hello, desired=self._agents.snapshot.desired if self._agents.snapshot else {})
                snapshot = await self._controller.call(ControlApi.next_snapshot, hello, version, timeout_s=CALL_S)
            except ControllerUnavailable as error:  # the Controller is down or restarting
                log.info("could not get a snapshot from the Controller: %r", error)
                await asyncio.sleep(0.5)
                continue
            if snapshot is not None:
                self._reporter.track(self._agents.apply(snapshot))
                self._informed.set()

    async def _report(self) -> None:
        while True:
            for _ in range(10):  # once a second, or sooner for what is urgent
                await asyncio.sleep(OBSERVE_EVERY_S / 10)
                if self._reporter.is_urgent:
                    break
            try:
                await self._observe()
                await self._report_orphans()
            except ControllerUnavailable as error:
                log.info("could not send an observation to the Controller: %r", error)

    async def _observe(self, timeout_s: float = CALL_S) -> None:
        observation = self._reporter.observation()
        try:
            self._export(observation)
        except Exception:  # Ray's pages are not worth a count that does not reach the Controller
            log.exception("could not report to Ray's metrics")
        await self._controller.call(ControlApi.observe, observation, timeout_s=timeout_s)
        self._reporter.delivered()

    async def _report_orphans(self) -> None:
        """Deliver the counts of gateways on this node that were killed before they could."""
        if self._counts_file is None:
            return
        for path in files(self._counts_file.path.parent):
            if path == self._counts_file.path:
                continue
            with held(path) as orphan:
                if orphan is not None:
                    for observation in orphan.observations():
                        await self._controller.call(ControlApi.observe, observation)
                    orphan.remove()

    async def _deliver_rest(self) -> None:
        """The undelivered batch and the last one; what cannot be delivered stays in the file for another gateway."""
        self._reporter.closing = True
        for _ in range(2):
            await self._observe(timeout_s=5)
        if self._counts_file is not None:
            self._counts_file.remove()

    async def stop(self, *, others_stay: bool = True) -> None:
        """Accept no new connections, finish the requests in flight, and deliver the last counts.

        `others_stay`: other processes share the port, and get the connections that arrive from now on. False: what arrives
        waits in the socket, which another process holds as well and will accept from."""
        # Snapshots are applied until the listener is closed: a waiting request may get a new instance.
        if self._listener is not None:
            await self._listener.close(others_stay=others_stay)
        for task in self._tasks:
            task.cancel()
        await self._peers.close()
        await self._connections.close()
        with contextlib.suppress(ControllerUnavailable):
            await self._deliver_rest()
            await self._controller.call(ControlApi.deregister_gateway, self._hello.gateway, timeout_s=5)
        if self._homes_file is not None:
            self._homes_file.remove()
        await self._controller.close()


async def tick_forever(agents: AgentTable, every_s: float = TICK_S) -> None:
    """Enforce what is due by time alone. After a pause of this process: not before what has arrived was read."""
    clock = running_clock()
    paused_s = clock.paused_s
    while True:
        await asyncio.sleep(every_s)
        before, paused_s = paused_s, clock.paused_s
        if paused_s > before:
            agents.postpone(paused_s - before, time.monotonic())
        if not clock.catching_up:
            agents.tick(time.monotonic())
