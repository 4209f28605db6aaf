"""Hosts one Agent: a process that listens on a port of its own, for the gateways only.

It starts in six steps: get a permit, start the agent, bind a port, register with the Controller, serve, watch itself. When
Serve stops it, it deregisters, drains (deployments/instance/draining.py), shuts the mounted app down and runs the stop hooks.
A stuck loop ends the process (deployments/instance/watchdog.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import psutil

from cluster.controller_api import ControlApi
from cluster.messages import InstanceCounts, InstanceSpec, Registration, RegistrationReply, StartPermit, StartRequest
from cluster.transport.http_protocol import ConnectionLimits
from cluster.transport.listener import Listener, bind
from cluster.transport.rpc import ControllerUnavailable, RpcClient, UnknownMethod
from deployments.instance.code_cache import CodeCache, CodeUnavailable
from deployments.instance.draining import drain_server, drain_terms
from deployments.instance.hosted_agent import HostedAgent, NotAnAgent, load_agent
from deployments.instance.lifecycle import Lifecycle
from deployments.instance.lifespan import Lifespan, StartupFailed
from deployments.instance.named_errors import current_task, ends_task
from deployments.instance.server import InstanceServer
from deployments.instance.threads import Threads
from deployments.instance.watchdog import LoopWatchdog
from policies.lifecycle.draining import Drain, DrainTerms

Result = TypeVar("Result")

log = logging.getLogger("swiftclaw.instance")

# For connections of gateways: kept open longer than gateways keep them, with room for the headers that a gateway adds; and
# how long a client may take to read is for the gateway to limit.
LIMITS = ConnectionLimits(keep_alive_s=120, unread_s=math.inf, head_bytes=2**18, header_count=320, target_bytes=2**15)
ASK_AGAIN_S = 1.0  # an operator's change lets a waiting instance start at once
UNWATCHED_S = 5.0  # without a watch of the Controller for this long, the instance registers again
PACKAGE_S = 120.0  # for code over a slow network
TO_THREAD_THREADS = 1024  # of asyncio.to_thread in the agent's code; Python's own default is the number of CPUs + 4
PATIENCE_S = 120.0  # an instance that starts waits so long for a Controller that is away, which costs less than another start
CLOSING_S = 0.3  # a request on its way is better refused than met by a closed connection
# For the mounted app's shutdown (at most half of it) and the stop hooks; below what Serve gives the replica after a drain
# (ENDING_S in cluster/placement/serve.py).
STOP_HOOKS_S = 30.0


class InstanceReplica:
    """One instance process. `replica`: Serve's unique id for it; `node`: Ray's id of its node; `host`: where it listens."""

    def __init__(
        self,
        spec: InstanceSpec,
        app: str,
        controller: RpcClient,
        *,
        replica: str,
        node: str,
        host: str,
        export: Callable[[InstanceCounts], None] = lambda _: None,
    ) -> None:
        """`export`: gets the counts of every second, for Ray's metrics."""
        self._spec, self._app, self._controller = spec, app, controller
        self._replica, self._node, self._host = replica, node, host
        self._serves = False
        self._export = export
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it serves. Raises RuntimeError when the agent cannot be started; the Controller gets the reason."""
        asyncio.get_running_loop().set_default_executor(Threads("to-thread", TO_THREAD_THREADS))
        self._crashes = await self._permit_to_start()
        self._agent = await self._start_agent()
        listening = bind(self._host, 0)
        reply = await self._register(listening)
        await self._serve(listening, reply)
        self._watch_itself()

    # --- start ----------------------------------------------------------------------------------------------------

    async def _permit_to_start(self) -> int:
        """Wait as long as the Controller demands of an instance that crashes repeatedly; returns how often it did.

        Once told to wait, it keeps waiting while the Controller is away. A Controller that is away from the beginning, or of
        an older release, is for `_register` to meet.
        """
        spec, permit, due = self._spec, StartPermit(0.0, 0), time.monotonic()
        while True:
            left_s = max(0.0, due - time.monotonic())
            request = StartRequest(self._app, spec.agent, spec.version, spec.region, self._replica, permit.crashes, left_s)
            try:
                permit = await self._controller.call(ControlApi.request_start, request)
            except ControllerUnavailable:
                permit = StartPermit(left_s, permit.crashes)
            if not permit.wait_s:
                return permit.crashes
            due = time.monotonic() + permit.wait_s
            await asyncio.sleep(min(permit.wait_s, ASK_AGAIN_S))

    async def _start_agent(self) -> HostedAgent:
        """Import the agent, run its start hooks, start its app. A failure goes to the Controller and ends the replica."""
        spec = self._spec
        try:
            self._code = CodeCache(spec.package) if spec.package else None
            folder = await self._code.ready(self._fetch_package) if self._code else spec.folder
            agent = await asyncio.to_thread(load_agent, spec.target, folder)
            await agent.start()
            self._lifespan = Lifespan(agent.app)
            await self._lifespan.startup()
        except BaseException as error:
            if ends_task(error, current_task()):
                raise
            clear = isinstance(error, NotAnAgent | CodeUnavailable | StartupFailed)
            reason = str(error) if clear else f"on_start raised {type(error).__name__}: {error}"
            await patiently(lambda: self._controller.call(ControlApi.cannot_start, self._app, self._replica, reason))
            raise RuntimeError(reason) from error
        return agent

    async def _register(self, listening: socket.socket) -> RegistrationReply:
        spec = self._spec
        self._registration = Registration(
            agent=spec.agent,
            version=spec.version,
            region=spec.region,
            app=self._app,
            replica=self._replica,
            host=self._host,
            port=listening.getsockname()[1],
            pid=os.getpid(),
            node=self._node,
            started_at=time.time(),
            session_affinity=self._agent.session_affinity,
            rate_rules=tuple(self._agent.rate_limits),
            package=spec.package,
            crashes=self._crashes,
        )
        reply = await patiently(lambda: self._controller.call(ControlApi.register, self._registration))
        self._terms = reply.drain
        self._serve_allows_s = reply.drain.drain_timeout_s  # Serve keeps the timeout that the replica was started with
        return reply

    async def _serve(self, listening: socket.socket, reply: RegistrationReply) -> None:
        self._server = InstanceServer(self._agent, self._spec, reply, self._replica, self._lifespan.state)
        self._server.retire = self._retire
        self._listener = Listener(self._server, listening, limits=LIMITS, ws_ping_timeout_s=None)
        await self._listener.start()
        self._serves = True

    def _watch_itself(self) -> None:
        self._tasks = [asyncio.create_task(self._measure()), asyncio.create_task(self._stay_registered())]
        self._watchdog = LoopWatchdog(f"{self._server.id} of {self._spec.agent}")

    # --- while it serves ------------------------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Serve's liveness probe, on the loop that answers requests: that it returns at all is the answer."""

    async def _measure(self) -> None:
        process = psutil.Process()
        process.cpu_percent(None)
        while True:
            await asyncio.sleep(1)
            self._server.cpu_percent = process.cpu_percent(None)
            self._server.tally.active = self._server.in_flight
            try:
                self._export(self._server.tally.take())
            except Exception:
                log.exception("could not report to Ray's metrics")

    async def _stay_registered(self) -> None:
        """Register again when the Controller stops watching: one that lost its state cannot find this instance."""
        while True:
            await asyncio.sleep(1)
            if self._server.watchers or time.monotonic() - self._server.unwatched_since < UNWATCHED_S:
                continue
            try:
                await self._register_again()
            except Exception as error:  # the Controller is unavailable; requests are answered meanwhile
                log.info("could not register with the Controller: %r", error)

    async def _register_again(self) -> None:
        registration = replace(self._registration, id=self._server.id)
        reply = await self._controller.call(ControlApi.register, registration)
        if reply.wants_code and self._code:
            content = await asyncio.to_thread(self._code.content)
            await self._controller.call(ControlApi.take_package, registration.package, content)
        self._server.id = reply.id
        self._terms = reply.drain
        self._server.unwatched_since = time.monotonic()

    async def _fetch_package(self, digest: str) -> bytes | None:
        return await patiently(lambda: self._controller.call(ControlApi.package, digest, timeout_s=PACKAGE_S))

    # --- stop -----------------------------------------------------------------------------------------------------

    def _retire(self) -> None:
        """Stop and end the process although Serve has not asked for it, so that Serve starts another one."""
        self._retiring = asyncio.create_task(self._stop_and_exit())

    async def _stop_and_exit(self) -> None:
        try:
            await self.stop()
        finally:
            os._exit(0)

    async def stop(self) -> None:
        """Drain and stop working; then the process may end. Every caller waits for the same end."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        if not self._serves:  # it waits for its permit, or the agent is starting
            with contextlib.suppress(ControllerUnavailable):
                await self._deregister()
            return
        began = time.monotonic()
        self._server.advance(Lifecycle.DRAINING)
        terms = await drain_terms(self._deregister, self._terms)
        terms = replace(terms, drain_timeout_s=min(terms.drain_timeout_s, self._serve_allows_s))
        await drain_server(self._server, Drain(terms, began))
        await asyncio.sleep(CLOSING_S)
        for task in self._tasks:
            task.cancel()
        self._server.advance(Lifecycle.ENDED)
        await self._listener.close()
        self._watchdog.stop()
        ends_at = time.monotonic() + STOP_HOOKS_S
        await self._lifespan.shutdown(STOP_HOOKS_S / 2)
        try:
            await asyncio.wait_for(self._agent.stop(), ends_at - time.monotonic())
        except asyncio.TimeoutError:
            log.error("%s: on_stop did not return within %g s; ending the process", self._server.id, STOP_HOOKS_S)
        finally:
            await self._controller.close()

    async def _deregister(self) -> DrainTerms | None:
        return await self._controller.call(ControlApi.deregister_instance, self._replica, self._spec.agent)


async def patiently(call: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a call to the Controller, repeated while it is away. Raises ControllerUnavailable after PATIENCE_S."""
    ends_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except UnknownMethod:  # waiting does not change its release
            raise
        except ControllerUnavailable as error:
            if time.monotonic() > ends_at:
                raise
            log.info("waiting for the Controller: %s", error)
        await asyncio.sleep(ASK_AGAIN_S)
