"""Active health checks: every interval ± 10 %, each instance is asked whether it is well; its own function may answer.

Out of rotation is not restarted: only a dead or wedged process is, by Ray Serve. A refused connection is the watch's to
notice (cluster/fleet/liveness.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from random import Random

import aiohttp

from cluster.config.agent_settings import HealthCheck
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import CHECK_PATH, KEY_HEADER
from cluster.transport.listener import in_url
from policies.lifecycle.health_threshold import HealthThreshold

log = logging.getLogger("swiftclaw.health")

SLICE_S = 1.0  # a changed interval takes effect at least this soon
JITTER = 0.1


class HealthChecker:
    """One loop per registered instance: never two checks of one at once."""

    def __init__(self, registry: Registry, key: str, settings: Callable[[str], HealthCheck | None], rng: Random) -> None:
        """`settings`: an agent's block as it is now, by name; None when the agent is gone."""
        self._registry, self._key, self._settings, self._rng = registry, key, settings, rng
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None

    def attend(self, record: InstanceRecord) -> None:
        """Start checking; once per replica."""
        replica = record.registration.replica
        if replica not in self._tasks:
            task = self._tasks[replica] = asyncio.create_task(self._check_for_ever(replica))
            task.add_done_callback(lambda _: self._tasks.pop(replica, None))

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _check_for_ever(self, replica: str) -> None:
        known: InstanceRecord | None = None
        while (record := self._registry.get(replica)) is not None:
            if record is not known:  # it was given up and has presented itself again
                known, verdict = record, HealthThreshold(record.well)
            settings = self._settings(record.registration.agent)
            if settings is None:  # its agent is gone, or not known yet: a Controller without its state learns it from gateways
                await asyncio.sleep(SLICE_S)
                continue
            if settings.enabled:
                passed, reason = await self._ask(record, settings.timeout_s)
                verdict.record(passed, settings.unhealthy_threshold, settings.healthy_threshold)
                self._registry.judge(replica, verdict.well, reason, time.time())
            elif verdict.well is not True:
                verdict = HealthThreshold(True)
                self._registry.judge(replica, True, "", None)
            await self._pause(record)

    async def _pause(self, record: InstanceRecord) -> None:
        """Until the next check is due, by the interval as it then is."""
        began, factor = time.monotonic(), self._rng.uniform(1 - JITTER, 1 + JITTER)
        while True:
            settings = self._settings(record.registration.agent)
            left = (settings.interval_s if settings else 0) * factor - (time.monotonic() - began)
            if left <= 0 or self._registry.get(record.registration.replica) is not record:
                return
            await asyncio.sleep(min(left, SLICE_S))

    async def _ask(self, record: InstanceRecord, timeout_s: float) -> tuple[bool, str]:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        to = record.registration
        try:
            async with self._session.get(
                f"http://{in_url(to.host)}:{to.port}{CHECK_PATH}",
                headers={KEY_HEADER.decode(): self._key},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                answer = await response.json()
                return bool(answer["healthy"]), str(answer["reason"])
        except asyncio.TimeoutError:
            return False, f"the health check took longer than {timeout_s:g} s"
        except (aiohttp.ClientError, ConnectionError, ValueError, KeyError, TypeError) as error:
            return False, f"the health check could not be made: {type(error).__name__}"
