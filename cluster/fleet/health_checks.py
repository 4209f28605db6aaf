"""Active health checks: every interval ± 10 % an instance is asked whether it is healthy; its agent's own function may answer.

An unhealthy instance receives no requests and is not restarted: Ray Serve restarts dead and hung processes only. A refused
connection is the liveness watch's to notice (cluster/fleet/liveness.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from typing import Any

import aiohttp

from cluster.config.agent_settings import HealthCheck
from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import CHECK_PATH
from cluster.transport.running_clock import running_clock
from policies.lifecycle.health_threshold import HealthThreshold

SLICE_S = 1.0  # a changed interval takes effect within this time
JITTER = 0.1
UNLIMITED = aiohttp.ClientTimeout(total=None)  # the time limit is the running clock's


class HealthChecker:
    """One loop per registered instance, so that an instance never has two checks at once."""

    def __init__(
        self, registry: Registry, instances: InstanceClient, settings: Callable[[str], HealthCheck | None], rng: Random
    ) -> None:
        """`settings`: an agent's current block, by name; None: there is no such agent."""
        self._registry, self._instances, self._settings, self._rng = registry, instances, settings, rng
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def attend(self, record: InstanceRecord) -> None:
        """Start checking; once per replica."""
        replica = record.registration.replica
        if replica not in self._tasks:
            task = self._tasks[replica] = asyncio.create_task(self._check_forever(replica))
            task.add_done_callback(lambda _: self._tasks.pop(replica, None))

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    async def _check_forever(self, replica: str) -> None:
        current: InstanceRecord | None = None
        while (record := self._registry.get(replica)) is not None:
            if record is not current:  # it was removed and has registered again
                current, threshold = record, HealthThreshold(record.well)
            settings = self._settings(record.registration.agent)
            if settings is None:  # no such agent, or not yet: a Controller without its state learns it from the gateways
                await asyncio.sleep(SLICE_S)
                continue
            if settings.enabled:
                passed, reason = await self._check(record, settings.timeout_s)
                threshold.record(passed, settings.unhealthy_threshold, settings.healthy_threshold)
                self._registry.judge(replica, threshold.healthy, reason, time.time())
            elif threshold.healthy is not True:
                threshold = HealthThreshold(True)
                self._registry.judge(replica, True, "", None)
            await self._pause(record)

    async def _pause(self, record: InstanceRecord) -> None:
        """Sleep until the next check is due; follows changes of the interval."""
        began, factor = time.monotonic(), self._rng.uniform(1 - JITTER, 1 + JITTER)
        while True:
            settings = self._settings(record.registration.agent)
            left = (settings.interval_s if settings else 0) * factor - (time.monotonic() - began)
            if left <= 0 or self._registry.get(record.registration.replica) is not record:
                return
            await asyncio.sleep(min(left, SLICE_S))

    async def _check(self, record: InstanceRecord, timeout_s: float) -> tuple[bool, str]:
        """Whether the check passed, and the reason if not."""
        try:
            answer = await running_clock().wait_for(self._ask(record), timeout_s)
            return bool(answer["healthy"]), str(answer["reason"])
        except asyncio.TimeoutError:
            return False, f"the health check timed out after {timeout_s:g} s"
        except (aiohttp.ClientError, ConnectionError, ValueError, KeyError, TypeError) as error:
            return False, f"the health check failed: {type(error).__name__}"

    async def _ask(self, record: InstanceRecord) -> Any:
        async with self._instances.request("GET", record.registration, CHECK_PATH, UNLIMITED) as response:
            return await response.json()
