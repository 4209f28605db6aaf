"""A gateway's workers: lean processes that forward in its place, because Ray in a process costs two fifths of its speed.

The gateway binds a socket per worker, and keeps it: connections that arrive while a worker is dead wait in its socket for the
next one, and none is refused. A worker that ends or does not report for FROZEN_S is replaced at once by a spare, a process
that has imported everything and waits; it costs its own connections.
The other way around, a worker whose gateway has died serves on for a while (worker.py). Source: NGINX and HAProxy, whose
master processes hold the sockets of their workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from cluster.messages import Observation
from cluster.transport.rpc import RpcAddress
from cluster.transport.running_clock import running_clock
from deployments.gateway.place import GatewayPlace
from deployments.workers.link import Begin, Counted, Find, Found, Leaving, Link, Ready, Stop

log = logging.getLogger("swiftclaw.gateway")

FROZEN_S = 10.0  # as long as Serve waits for the answer of a replica to its health check
START_S = 60.0  # a worker that does not accept connections after this long is replaced
LOOK_S = 1.0
AGAIN_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # before the next start, by the number of starts in a row that failed
GIVE_UP = 3  # failed starts in a row, while the gateway itself starts
ROOT = Path(__file__).parents[2]
# Ray kills the process group of a replica that has died; workers serve on. Before Python 3.11 they leave it once they run.
OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {}


class WorkerFailed(Exception):
    """A worker process does not start. One sentence: how it ended, and where its log is."""


@dataclass
class _Process:
    """One worker process, and what is known of it."""

    name: str
    process: subprocess.Popen[bytes]
    link: Link
    heard_at: float
    ready: bool = False
    asked: set[asyncio.Task[None]] = field(default_factory=set)


class Workers:
    """The workers of one gateway."""

    def __init__(
        self,
        place: GatewayPlace,
        listening: Sequence[socket.socket],
        find: Callable[[], Awaitable[RpcAddress]],
        export: Callable[[Observation], None] = lambda _: None,
        ended: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """`listening`: a bound socket per worker. `find`: where the Controller is. `export`: gets every observation of a
        worker; `ended`: is told the name of a worker whose process has ended."""
        self._place, self._listening = place, listening
        self._find, self._export, self._ended = find, export, ended
        self._numbers = count(1)
        self._running: dict[socket.socket, _Process] = {}
        self._spare: tuple[subprocess.Popen[bytes], socket.socket] | None = None  # and the link to it
        self._telling: set[asyncio.Future[None]] = set()
        self._leaving: dict[asyncio.Task[int], _Process] = {}  # they accept no more, and another one has their socket
        self._ready = asyncio.Event()
        self._started = self._closing = False
        self._kept: list[asyncio.Task[None]] = []  # one per socket

    def __repr__(self) -> str:
        pids = [worker.process.pid for worker in self._running.values()]
        return f"<Workers of {self._place.name}: {len(pids)} of {len(self._listening)} running, pids {pids}>"

    async def start(self) -> None:
        """Returns when all of them accept connections. Raises WorkerFailed."""
        self._kept = [asyncio.create_task(self._keep(listening)) for listening in self._listening]
        self._watching = asyncio.create_task(self._watch())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait([ready, *self._kept], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            failed = next(task for task in self._kept if task.done())
            await self.kill()
            failed.result()
        self._started = True
        self._keep_spare()

    async def stop(self) -> None:
        """Each finishes its requests in flight and ends; one that freezes meanwhile is killed. Then the sockets are closed."""
        self._closing = True
        for worker in self._all():
            worker.link.send(Stop())
        await self._end()

    async def kill(self) -> None:
        """End them at once."""
        self._closing = True
        for worker in self._all():
            worker.process.kill()
        await self._end()

    def _all(self) -> list[_Process]:
        return [*self._running.values(), *self._leaving.values()]

    async def _end(self) -> None:
        await asyncio.gather(*self._kept, return_exceptions=True)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._watching.cancel()
        for telling in self._telling:
            telling.cancel()
        if self._spare is not None:
            process, link = self._spare
            link.close()
            process.kill()
            await asyncio.to_thread(process.wait)
        for listening in self._listening:
            listening.close()

    async def _keep(self, listening: socket.socket) -> None:
        """Have a worker run on this socket until `stop`."""
        failures = 0
        while not self._closing:
            try:
                worker = await self._spawn(listening)
            except OSError as error:  # no memory, no descriptors: perhaps later
                how, ready = f"a worker cannot be started: {error}", False
            else:
                status = await self._follow(worker)
                del self._running[listening]
                how, ready = f"worker {worker.name} (pid {worker.process.pid}) ", worker.ready
                how += "was terminated" if status is None else f"ended with status {status}"
                if not ready:
                    how += f" before it accepted connections; its log is {log_of(self._place, worker.name)}"
            if self._closing:
                return
            failures = 0 if ready else failures + 1
            if failures >= GIVE_UP and not self._started:
                raise WorkerFailed(how)
            log.warning("%s; another one starts in its place", how)
            await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)])

    async def _spawn(self, listening: socket.socket) -> _Process:
        name = f"{self._place.name}-{next(self._numbers)}"
        spare, self._spare = self._spare, None
        if spare is not None and spare[0].poll() is not None:
            spare[1].close()
            spare = None
        process, link = spare or self._process()
        worker = _Process(name, process, await Link.over(link), running_clock().now())
        self._running[listening] = worker
        worker.link.send(Begin(replace(self._place, name=name, worker_of=self._place.name), listening.fileno()))
        if self._closing:
            worker.link.send(Stop())
        return worker

    def _process(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A process that waits for its Begin, and the link to it. Raises OSError."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                return _start(theirs, self._listening, self._place), ours
        except OSError:
            ours.close()
            raise

    def _keep_spare(self) -> None:
        """Without one, a worker that ends is replaced all the same, only later."""
        if self._spare is None and self._started and not self._closing:
            with contextlib.suppress(OSError):
                self._spare = self._process()

    async def _follow(self, worker: _Process) -> int | None:
        """Answer what the worker asks until it has ended, and return its exit status; None: it leaves."""
        while (message := await worker.link.receive()) is not None:
            worker.heard_at = running_clock().now()
            if isinstance(message, Ready):
                worker.ready = True
                self._keep_spare()
                if len(self._running) == len(self._listening) and all(each.ready for each in self._running.values()):
                    self._ready.set()
            elif isinstance(message, Find):
                task = asyncio.create_task(self._tell_address(worker.link))
                worker.asked.add(task)
                task.add_done_callback(worker.asked.discard)
            elif isinstance(message, Counted):
                self._export(message.observation)
            elif isinstance(message, Leaving) and not self._closing:
                seen_off = asyncio.create_task(self._see_off(worker))
                self._leaving[seen_off] = worker
                seen_off.add_done_callback(self._leaving.pop)
                return None
        return await self._ended_status(worker)

    async def _see_off(self, worker: _Process) -> int:
        status = await self._follow(worker)
        assert status is not None  # it leaves once
        return status

    async def _ended_status(self, worker: _Process) -> int:
        for task in worker.asked:
            task.cancel()
        worker.link.close()
        if not self._closing:
            worker.process.kill()  # it has ended, or closed its link by a defect: two on one socket would share it
        status = await asyncio.to_thread(worker.process.wait)
        if self._ended is not None:
            telling = asyncio.ensure_future(self._ended(worker.name))
            self._telling.add(telling)
            telling.add_done_callback(self._told)
        return status

    def _told(self, telling: asyncio.Future[None]) -> None:
        self._telling.discard(telling)
        if not telling.cancelled() and telling.exception() is not None:
            log.info("could not report that a worker has ended: %r", telling.exception())

    async def _tell_address(self, link: Link) -> None:
        try:
            link.send(Found(await self._find()))
        except Exception as error:  # the Controller restarts; the worker asks again
            log.info("could not find the Controller for a worker: %r", error)
            link.send(Found(None))

    async def _watch(self) -> None:
        """Kill those that are frozen. After a pause of this process: not before what they have sent was read."""
        clock = running_clock()
        while True:
            await asyncio.sleep(LOOK_S)
            for worker in self._all():
                silent_s = clock.now() - worker.heard_at
                if silent_s > (FROZEN_S if worker.ready else START_S):
                    log.warning(
                        "worker %s (pid %d) has been silent for %.0f s: killed", worker.name, worker.process.pid, silent_s
                    )
                    worker.process.kill()


def _start(link: socket.socket, listening: Sequence[socket.socket], place: GatewayPlace) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.workers.worker", str(link.fileno()), place.app, str(place.logs)],
        pass_fds=[link.fileno(), *(one.fileno() for one in listening)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        **OWN_GROUP,
    )


def worker_count(setting: int | Literal["auto"]) -> int:
    """How many workers `gateways[].workers` asks for here; `auto`: one per core that this process may use."""
    if setting != "auto":
        return setting
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def log_of(place: GatewayPlace, name: str) -> Path:
    return place.logs / f"worker_{place.app}_{name}.log"
