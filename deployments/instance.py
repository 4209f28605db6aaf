"""Hosts one Agent: a Serve replica that listens on a port of its own, for the gateways only.

Its life: import the agent, run its start hooks, bind, present itself to the Controller, serve. When Serve stops it: say so,
finish what is in flight, run the stop hooks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

import psutil
import ray
from ray import serve

from cluster.listener import Listener, bind
from cluster.messages import Admission, InstanceSpec, Registration
from deployments.answering import Answering
from deployments.hosting import NotAnAgent, load_agent

log = logging.getLogger("swiftclaw.instance")

KEEP_ALIVE_S = 120  # longer than a gateway keeps an idle connection
ALONE_S = 5.0  # without a watch from the Controller for this long: present itself again
SETTLE_S = 1.0  # after saying that it leaves: time for every gateway to hear of it
CLOSING_S = 0.3  # refusing is kinder than a broken connection to a request that is under way
SESSIONS_S = 30.0  # for this long at most it goes on for sessions that live here and are busy


class Instance:
    """The class that instance apps run."""

    async def __init__(self, spec: InstanceSpec, app: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._controller = serve.get_deployment_handle("Controller", "swiftclaw")
        self._spec = spec
        try:
            self._agent = await asyncio.to_thread(load_agent, spec.target, spec.folder)
            await self._agent.start()
        except Exception as error:
            reason = str(error) if isinstance(error, NotAnAgent) else f"on_start raised {type(error).__name__}: {error}"
            await self._controller.cannot_start.remote(app, reason)
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
            rate_limited=bool(self._agent.rate_limits),
        )
        admission: Admission = await self._controller.register.remote(self._registration)
        self._answering = Answering(self._agent, spec, admission, self._registration.replica)
        self._listener = Listener(self._answering, listening, keep_alive_s=KEEP_ALIVE_S)
        await self._listener.start()
        self._tasks = [asyncio.create_task(self._measure()), asyncio.create_task(self._stay_known())]

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
                admission: Admission = await asyncio.wait_for(self._register(known), 20)
                self._answering.id = admission.id
                self._answering.watched_at = time.monotonic()
            except Exception as error:  # the Controller is away; requests go on meanwhile
                log.info("could not present itself to the Controller: %r", error)

    async def _register(self, registration: Registration) -> Admission:
        admission: Admission = await self._controller.register.remote(registration)
        return admission

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop."""
        self._answering.drain()
        try:
            await asyncio.wait_for(self._say_goodbye(), 5)
        except Exception as error:
            log.info("the Controller was not told: %r", error)
        began = time.monotonic()
        while time.monotonic() < began + SETTLE_S or (self._answering.in_flight and time.monotonic() < began + SESSIONS_S):
            await asyncio.sleep(0.05)
        self._answering.close()
        while self._answering.in_flight:
            await asyncio.sleep(0.05)
        await asyncio.sleep(CLOSING_S)
        for task in self._tasks:
            task.cancel()
        await self._listener.close()
        await self._agent.stop()

    async def _say_goodbye(self) -> None:
        await self._controller.leaving.remote(self._registration.replica)
