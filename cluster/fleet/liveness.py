"""Does each instance's process still run? One open stream from each, a line a second, read for as long as it is registered.

A killed process is noticed when its connection breaks (at once), a frozen process or a dead node when the lines stop.
Whether a running instance is healthy is for its health checks (cluster/fleet/health_checks.py). Silence is measured by the
running clock: while this process is paused it reads no lines, which says nothing of the instances.
"""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp

from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import WATCH_PATH
from cluster.transport.running_clock import running_clock

log = logging.getLogger("swiftclaw.health")

LINE_EVERY_S = 1.0
SILENCE_S = 5.0  # without a line for this long, an instance is ejected
GONE_S = 30.0  # and for this long, removed: its name is free (it may register again and get another)
VERIFY_S = 2.0


class _Stream:
    """The stream of one instance. `last_at`: when its newest line arrived, or it was opened."""

    def __init__(self) -> None:
        self.clock = running_clock()
        self.last_at = self.last_line_at = self.clock.now()

    def opened(self) -> None:
        self.last_at = self.clock.now()

    def line(self) -> None:
        self.last_at = self.last_line_at = self.clock.now()


class LivenessWatch:
    """Keeps a stream to every registered instance and writes what it learns into the registry."""

    def __init__(self, registry: Registry, instances: InstanceClient) -> None:
        self._registry = registry
        self._instances = instances
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def attend(self, record: InstanceRecord) -> None:
        """Start watching; once per replica."""
        replica = record.registration.replica
        if replica not in self._tasks:
            task = self._tasks[replica] = asyncio.create_task(self._follow(record))
            task.add_done_callback(lambda _: self._tasks.pop(replica, None))

    async def verify(self, record: InstanceRecord) -> bool:
        """Whether the instance answers right now. One that refuses the connection is removed."""
        try:
            async with self._open(record, timeout_s=VERIFY_S) as response:
                return response.status == 200
        except (aiohttp.ClientConnectorError, ConnectionError):
            self._remove(record)
            return False
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    async def _follow(self, record: InstanceRecord) -> None:
        replica, stream = record.registration.replica, _Stream()
        while self._registry.get(replica) is record:
            stream.opened()
            reading = asyncio.create_task(self._read(record, stream))
            try:
                if await stream.clock.wait_until(reading, lambda: stream.last_at + SILENCE_S):
                    reading.result()
                else:
                    self._registry.eject(replica, f"no response for {SILENCE_S:g} s")
            except (aiohttp.ClientConnectorError, ConnectionRefusedError):
                return self._remove(record)
            except (aiohttp.ClientError, ConnectionError, ValueError, asyncio.TimeoutError) as error:
                log.info("%s: the liveness stream broke: %r", record.id, error)
            finally:
                reading.cancel()
            if stream.clock.now() - stream.last_line_at > GONE_S:
                return self._remove(record)
            await asyncio.sleep(0.05)
        return None

    async def _read(self, record: InstanceRecord, stream: _Stream) -> None:
        """Read the instance's lines until the stream ends."""
        async with self._open(record, timeout_s=None) as response:
            response.raise_for_status()
            async for line in response.content:
                stream.line()
                self._observe(record, json.loads(line))

    def _open(self, record: InstanceRecord, timeout_s: float | None) -> aiohttp.client._RequestContextManager:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        return self._instances.request("GET", record.registration, WATCH_PATH, timeout)

    def _observe(self, record: InstanceRecord, line: dict[str, object]) -> None:
        if line.get("replica") != record.registration.replica:
            return self._remove(record)  # another process has the port now
        record.cpu_percent = float(str(line["cpu"]))
        self._registry.observe(record.registration.replica, draining=bool(line["draining"]), stopped=bool(line["stopped"]))
        return None

    def _remove(self, record: InstanceRecord) -> None:
        if self._registry.get(record.registration.replica) is record:
            log.warning("removed %s of %s: its process no longer runs", record.id, record.registration.agent)
            self._registry.remove(record.registration.replica)
