"""How is an instance taken away on purpose? For `swiftclaw test failover`, which shows what clients notice of it.

kill: its process gets SIGKILL, without a word to anybody. drain: it leaves as one that Serve stops, then its process ends;
Serve starts another one after both. unhealthy: it is held as not well for a while, whatever its checks say. A hold is
remembered nowhere: a Controller that restarts has forgotten it, and the checks decide again. Not for operating: an
instance that is to stay away is scaled away.
"""

from __future__ import annotations

import asyncio

import aiohttp

from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import DRAIN_PATH, KEY_HEADER, KILL_PATH
from cluster.transport.listener import in_url

MODES = ("kill", "drain", "unhealthy")
REASON = "taken out by `swiftclaw test failover`"
TIMEOUT_S = 5.0

_PATHS = {"kill": KILL_PATH, "drain": DRAIN_PATH}


class FaultInjector:
    """Acts on the instances of one registry."""

    def __init__(self, registry: Registry, key: str) -> None:
        self._registry, self._key = registry, key
        self._holds: dict[str, asyncio.TimerHandle] = {}  # by replica

    async def take(self, agent: str, instance: str, mode: str, seconds: float) -> None:
        """`seconds`: how long `unhealthy` holds; 0 ends a hold. Raises ValueError with a sentence when it cannot be done."""
        record = self._find(agent, instance)
        if mode not in MODES:
            raise ValueError(f"{mode!r} is not a way to take an instance away ({', '.join(MODES)})")
        if mode == "unhealthy" and seconds <= 0:
            self._release(record.registration.replica)
        elif record.state != "healthy":
            raise ValueError(f"{instance} of {agent} is {record.state}, not healthy: there is nothing to take away")
        elif mode == "unhealthy":
            self._hold(record.registration.replica, seconds)
        else:
            await self._tell(record, mode)

    def _find(self, agent: str, instance: str) -> InstanceRecord:
        records = {record.id: record for record in self._registry.of(agent)}
        if instance not in records:
            known = ", ".join(records) or "none"
            raise ValueError(f"{agent} has no instance {instance!r} (it has: {known})")
        return records[instance]

    def _hold(self, replica: str, seconds: float) -> None:
        self._registry.hold(replica, REASON)
        self._holds[replica] = asyncio.get_running_loop().call_later(seconds, self._release, replica)

    def _release(self, replica: str) -> None:
        timer = self._holds.pop(replica, None)
        if timer is not None:
            timer.cancel()
            self._registry.hold(replica, "")

    async def _tell(self, record: InstanceRecord, mode: str) -> None:
        """Returns when the instance has begun to go; one that is killed breaks the connection instead of answering."""
        to = record.registration
        try:
            async with aiohttp.ClientSession() as client:
                answer = await client.post(
                    f"http://{in_url(to.host)}:{to.port}{_PATHS[mode]}",
                    headers={KEY_HEADER.decode(): self._key},
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                )
                if answer.status >= 300:
                    raise ValueError(f"{record.id} of {to.agent} answered {answer.status}: it cannot be taken away by {mode}")
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as broken:
            if mode != "kill":
                raise ValueError(f"{record.id} of {to.agent} broke off when it was asked to leave") from broken
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise ValueError(f"{record.id} of {to.agent} does not answer: {type(error).__name__}") from error
