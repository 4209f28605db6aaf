"""Watching instances: one open stream from each, a line a second; silence and a broken connection are both answers.

A killed process is noticed when its connection breaks (at once), a frozen one or a dead node when the lines stay away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time

import aiohttp

from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import KEY_HEADER, WATCH_PATH
from cluster.transport.listener import in_url

log = logging.getLogger("swiftclaw.health")

LINE_EVERY_S = 1.0
SILENCE_S = 5.0  # lines that stay away this long: it does not answer
GONE_S = 30.0  # and this long: it is given up, its name is free (it may come back under another)


class LivenessWatch:
    """Keeps a stream to every registered instance and writes what it learns into the registry."""

    def __init__(self, registry: Registry, key: str) -> None:
        self._registry = registry
        self._key = key
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None

    def attend(self, record: InstanceRecord) -> None:
        """Start watching; once per replica."""
        replica = record.registration.replica
        if replica not in self._tasks:
            task = self._tasks[replica] = asyncio.create_task(self._follow(record))
            task.add_done_callback(lambda _: self._tasks.pop(replica, None))

    async def verify(self, record: InstanceRecord) -> bool:
        """Does it answer right now? One that refuses the connection is removed."""
        try:
            async with self._open(record, timeout_s=2) as response:
                return response.status == 200
        except (aiohttp.ClientConnectorError, ConnectionError):
            self._gone(record)
            return False
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _follow(self, record: InstanceRecord) -> None:
        replica = record.registration.replica
        heard = time.monotonic()
        while self._registry.get(replica) is record:
            try:
                async with self._open(record, timeout_s=SILENCE_S) as response:
                    response.raise_for_status()
                    async for line in response.content:
                        heard = time.monotonic()
                        self._learn(record, json.loads(line))
            except (aiohttp.ClientConnectorError, ConnectionRefusedError):
                return self._gone(record)
            except asyncio.TimeoutError:  # before ClientError: aiohttp's time-outs are both
                self._registry.silent(replica, f"has not answered for {SILENCE_S:g} s")
            except (aiohttp.ClientError, ConnectionError, ValueError) as error:
                log.info("%s: the watch broke: %r", record.id, error)
            if time.monotonic() - heard > GONE_S:
                return self._gone(record)
            await asyncio.sleep(0.05)
        return None

    def _open(self, record: InstanceRecord, timeout_s: float) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        to = record.registration
        return self._session.get(
            f"http://{in_url(to.host)}:{to.port}{WATCH_PATH}",
            headers={KEY_HEADER.decode(): self._key},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s),
        )

    def _learn(self, record: InstanceRecord, line: dict[str, object]) -> None:
        if line.get("replica") != record.registration.replica:
            return self._gone(record)  # the port belongs to another process by now
        record.in_flight = int(str(line["in_flight"]))
        record.cpu_percent = float(str(line["cpu"]))
        self._registry.hear(record.registration.replica, draining=bool(line["draining"]), stopped=bool(line["stopped"]))
        return None

    def _gone(self, record: InstanceRecord) -> None:
        if self._registry.get(record.registration.replica) is record:
            log.warning("%s of %s is gone", record.id, record.registration.agent)
            self._registry.remove(record.registration.replica)
