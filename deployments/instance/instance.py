"""Hosts one Agent: a Serve replica that listens on a port of its own, for the gateways only.

Its life: import the agent, run its start hooks, bind, present itself to the Controller, serve. When Serve stops it: say so,
drain (deployments/instance/draining.py), run the stop hooks. When its event loop gets stuck: end
(deployments/instance/watchdog.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from dataclasses import replace

import psutil
import ray
from ray import serve

from cluster.messages import InstanceSpec, RateRule, Registration, RegistrationReply
from cluster.transport.http_protocol import ConnectionLimits
from cluster.transport.listener import Listener, bind
from cluster.transport.rpc import RpcClient
from deployments.instance.code_cache import CodeCache, CodeUnavailable
from deployments.instance.draining import drained, terms_of_leaving
from deployments.instance.hosted_agent import NotAnAgent, load_agent
from deployments.instance.server import InstanceServer
from deployments.instance.watchdog import LoopWatchdog
from policies.lifecycle.draining import Drain, DrainTerms

log = logging.getLogger("swiftclaw.instance")

# For connections of gateways: kept longer than they keep them, with room for what they add to a head; and how long a client
# may not read is theirs to say.
LIMITS = ConnectionLimits(keep_alive_s=120, unread_s=math.inf, head_bytes=2**18, header_count=320, target_bytes=2**15)
ALONE_S = 5.0  # without a watch from the Controller for this long: present itself again
PACKAGE_S = 120.0  # for code over a slow network
CLOSING_S = 0.3  # refusing is kinder than a broken connection to a request that is under way
STOP_HOOKS_S = 30.0  # below what Serve gives it after a drain (ENDING_S in cluster/placement/serve.py)


class InstanceReplica:
    """The class that instance apps run."""

    async def __init__(self, spec: InstanceSpec, app: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._controller = RpcClient(serve.get_deployment_handle("Controller", "swiftclaw").control.remote)
        self._spec = spec
        try:
            self._code = CodeCache(spec.package) if spec.package else None
            folder = await self._code.ready(self._package) if self._code else spec.folder
            self._agent = await asyncio.to_thread(load_agent, spec.target, folder)
            await self._agent.start()
        except Exception as error:
            clear = isinstance(error, NotAnAgent | CodeUnavailable)
            reason = str(error) if clear else f"on_start raised {type(error).__name__}: {error}"
            await self._controller.call("cannot_start", app, reason)
            raise RuntimeError(reason) from error
        host = spec.host or ray.util.get_node_ip_address()
        listening = bind(host, 0)
        self._registration = Registration(
            agent=spec.agent,
            version=spec.version,
            region=spec.region,
            app=app,
            replica=serve.get_replica_context().replica_id.unique_id,
            host=host,
            port=listening.getsockname()[1],
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
            started_at=time.time(),
            session_affinity=self._agent.session_affinity,
            rate_rules=tuple(RateRule(r.requests, r.window_s, r.key, r.strategy) for r in self._agent.rate_limits),
            package=spec.package,
        )
        admission: RegistrationReply = await self._controller.call("register", self._registration)
        self._terms = admission.drain
        self._allowed_s = admission.drain.drain_timeout_s  # Serve keeps what it was started with
        self._leaving: asyncio.Task[None] | None = None
        self._answering = InstanceServer(self._agent, spec, admission, self._registration.replica)
        self._answering.retire = self._retire
        self._listener = Listener(self._answering, listening, limits=LIMITS)
        await self._listener.start()
        self._tasks = [asyncio.create_task(self._measure()), asyncio.create_task(self._stay_known())]
        self._pulse = LoopWatchdog(f"{admission.id} of {spec.agent}")

    async def check_health(self) -> None:
        """Serve asks this on the loop that answers requests: no answer means that the loop is stuck. It says nothing else."""

    async def _measure(self) -> None:
        process = psutil.Process()
        process.cpu_percent(None)
        while True:
            await asyncio.sleep(1)
            self._answering.cpu_percent = process.cpu_percent(None)

    async def _stay_known(self) -> None:
        """A Controller that lost its state has no way to find this instance; so the instance looks for it."""
        while True:
            await asyncio.sleep(1)
            if self._answering.watched or time.monotonic() - self._answering.watched_at < ALONE_S:
                continue
            known = Registration(**{**vars(self._registration), "id": self._answering.id})
            try:
                admission: RegistrationReply = await self._register(known)
                self._answering.id = admission.id
                self._terms = admission.drain
                self._answering.watched_at = time.monotonic()
            except Exception as error:  # the Controller is away; requests go on meanwhile
                log.info("could not present itself to the Controller: %r", error)

    async def _package(self, digest: str) -> bytes | None:
        content: bytes | None = await self._controller.call("package", digest, timeout_s=PACKAGE_S)
        return content

    async def _register(self, registration: Registration) -> RegistrationReply:
        admission: RegistrationReply = await self._controller.call("register", registration)
        if admission.wants_code and self._code:
            content = await asyncio.to_thread(self._code.content)
            await self._controller.call("take_package", registration.package, content)
        return admission

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop."""
        await self.leave()

    def _retire(self) -> None:
        """Leave and end the process without Serve's asking, so that Serve starts another one."""
        self._retiring = asyncio.create_task(self._leave_and_exit())

    async def _leave_and_exit(self) -> None:
        try:
            await self.leave()
        finally:
            os._exit(0)

    async def leave(self) -> None:
        """Drain and stop working; then the process may end. Whoever asks again waits for the same end."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
        await asyncio.shield(self._leaving)

    async def _leave(self) -> None:
        began = time.monotonic()
        self._answering.drain()
        terms = await terms_of_leaving(self._say_goodbye, self._terms)
        terms = replace(terms, drain_timeout_s=min(terms.drain_timeout_s, self._allowed_s))
        await drained(self._answering, Drain(terms, began))
        await asyncio.sleep(CLOSING_S)
        for task in self._tasks:
            task.cancel()
        self._answering.end()
        await self._listener.close()
        self._pulse.stop()
        try:
            await asyncio.wait_for(self._agent.stop(), STOP_HOOKS_S)
        except asyncio.TimeoutError:
            log.error("%s: on_stop took longer than %g s", self._answering.id, STOP_HOOKS_S)
        finally:
            await self._controller.close()

    async def _say_goodbye(self) -> DrainTerms | None:
        terms: DrainTerms | None = await self._controller.call("leaving", self._registration.replica, self._spec.agent)
        return terms
