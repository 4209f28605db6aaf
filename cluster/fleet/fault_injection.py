"""How is a fault injected into an instance? For `swiftclaw test failover`, which measures what clients notice of it.

kill: the process gets SIGKILL. drain: it stops as if Serve had stopped it, then its process ends; Serve replaces it after
both. unhealthy: it is held unhealthy for a while, whatever its health checks report; a Controller that restarts drops the
hold, and the checks decide again. Not for operations: use `swiftclaw scale` to remove an instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.instance_state import HEALTHY
from cluster.messages import DRAIN_PATH, KILL_PATH

MODES = ("kill", "drain", "unhealthy")
REASON = "taken out of service by `swiftclaw test failover`"
TIMEOUT_S = 5.0

_PATHS = {"kill": KILL_PATH, "drain": DRAIN_PATH}


class FaultInjector:
    """Acts on the instances of one registry."""

    def __init__(
        self, registry: Registry, instances: InstanceClient, ending: Callable[[str], None] = lambda replica: None
    ) -> None:
        """`ending` is called with the replica that is about to be killed or drained."""
        self._registry, self._instances, self._ending = registry, instances, ending
        self._holds: dict[str, asyncio.TimerHandle] = {}  # by replica

    async def inject(self, agent: str, instance: str, mode: str, seconds: float) -> None:
        """`seconds`: how long `unhealthy` lasts; 0 ends it. Raises ValueError with a sentence when it cannot be done."""
        record = self._find(agent, instance)
        if mode not in MODES:
            raise ValueError(f"{mode!r} is not a failover mode ({', '.join(MODES)})")
        if mode == "unhealthy" and seconds <= 0:
            self._release(record.registration.replica)
        elif record.state != HEALTHY:
            raise ValueError(f"{instance} of {agent} is {record.state}: only a healthy instance can be taken out of service")
        elif mode == "unhealthy":
            self._hold(record.registration.replica, seconds)
        else:
            await self._send(record, mode)

    def _find(self, agent: str, instance: str) -> InstanceRecord:
        records = {record.id: record for record in self._registry.of(agent)}
        if instance not in records:
            raise ValueError(f"{agent} has no instance {instance!r} (it has: {', '.join(records) or 'none'})")
        return records[instance]

    def _hold(self, replica: str, seconds: float) -> None:
        self._registry.hold(replica, REASON)
        self._holds[replica] = asyncio.get_running_loop().call_later(seconds, self._release, replica)

    def _release(self, replica: str) -> None:
        timer = self._holds.pop(replica, None)
        if timer is not None:
            timer.cancel()
            self._registry.hold(replica, "")

    async def _send(self, record: InstanceRecord, mode: str) -> None:
        """Returns when the instance has begun to stop; a killed one closes the connection instead of answering."""
        to, timeout = record.registration, aiohttp.ClientTimeout(total=TIMEOUT_S)
        name = f"{record.id} of {to.agent}"
        self._ending(to.replica)
        try:
            async with self._instances.request("POST", to, _PATHS[mode], timeout) as answer:
                if answer.status >= 300:
                    raise ValueError(f"{name} answered the {mode} request with status {answer.status} and stays in service")
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as broken:
            if mode != "kill":
                raise ValueError(f"{name} closed the connection before it answered the {mode} request") from broken
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise ValueError(f"{name} does not respond: {type(error).__name__}") from error
