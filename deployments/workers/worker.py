"""A worker: a process without Ray that is a gateway like any other, but for how it learns where the Controller is.

`python -m deployments.workers.worker LINK …`: the number of an open descriptor; what follows is for those who read the list of
processes. It waits until it is told to begin, so that one that has imported everything can be kept ready. Snapshots, counts
and the exchange with other gateways are its own. If the gateway that started it has died, it serves on until the Controller
cannot be reached, or for ORPHAN_S: the replica that Serve starts instead listens on the same port by then, and no connection is
refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import socket
import sys
from typing import NoReturn

from cluster.messages import Observation
from cluster.transport.rpc import RpcAddress, RpcClient
from cluster.transport.tls import BadCertificate, Certificate
from deployments.garbage import keep_what_is_here
from deployments.gateway.assembly import assemble
from deployments.gateway.place import GatewayPlace
from deployments.workers.link import Alive, Begin, Counted, Find, Found, Leaving, Link, Ready, Stop
from deployments.workers.supervisor import log_of

log = logging.getLogger("swiftclaw.gateway")

ALIVE_S = 1.0
ORPHAN_S = 30.0
LOG_BYTES = 10 * 2**20


class Worker:
    """The side of the worker process."""

    def __init__(self, link: Link, orphan_s: float = ORPHAN_S) -> None:
        self._link, self._orphan_s = link, orphan_s
        self._asked: list[asyncio.Future[RpcAddress | None]] = []
        self._stop = asyncio.Event()
        self._socket_stays = False  # this worker alone ends: the next one accepts from its socket
        self._alone = asyncio.Event()  # the gateway that started it has ended
        self._lost = asyncio.Event()  # and the Controller is away as well

    async def run(self) -> None:
        begin = await self._link.receive()
        if not isinstance(begin, Begin):
            return
        place, listening = begin.place, socket.socket(fileno=begin.listening)
        _log_to(place)
        listens = asyncio.create_task(self._listen())
        tls = place.settings.tls
        certificate = Certificate(tls.cert, tls.key) if tls else None
        gateway = await assemble(place, RpcClient(self._find), listening, certificate, self._export)
        await gateway.start()
        self._link.send(Ready())
        beats = asyncio.create_task(self._beat())
        keep_what_is_here()
        await self._wait()
        stopping = asyncio.create_task(gateway.stop(others_stay=not self._socket_stays))
        if not self._alone.is_set():  # Serve ends what does not stop in time; so does a worker then
            alone = asyncio.create_task(self._alone.wait())
            await asyncio.wait({stopping, alone}, return_when=asyncio.FIRST_COMPLETED)
            alone.cancel()
        else:
            await stopping
        for task in (beats, listens, stopping):
            task.cancel()
        await asyncio.gather(beats, listens, stopping, return_exceptions=True)

    def terminate(self) -> None:
        """SIGTERM: somebody ends this worker, and not its gateway."""
        if not self._stop.is_set():
            self._socket_stays = True
            self._link.send(Leaving())
            self._stop.set()

    async def _wait(self) -> None:
        """Until it is told to stop, or has been alone for long enough."""
        stop, alone = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._alone.wait())
        await asyncio.wait({stop, alone}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            log.warning("the gateway that started this worker has ended; serving on for at most %g s", self._orphan_s)
            lost = asyncio.create_task(self._lost.wait())
            await asyncio.wait({stop, lost}, timeout=self._orphan_s, return_when=asyncio.FIRST_COMPLETED)
            lost.cancel()
        stop.cancel()
        alone.cancel()

    async def _listen(self) -> None:
        while (message := await self._link.receive()) is not None:
            if isinstance(message, Found):
                asked, self._asked = self._asked, []
                for future in asked:
                    if not future.done():
                        future.set_result(message.address)
            elif isinstance(message, Stop):
                self._stop.set()
        self._alone.set()
        for future in self._asked:
            if not future.done():
                future.set_result(None)

    async def _find(self) -> RpcAddress:
        """Where the Controller is, as the gateway knows."""
        address: RpcAddress | None = None
        if self._alone.is_set():
            self._lost.set()
        else:
            future: asyncio.Future[RpcAddress | None] = asyncio.get_running_loop().create_future()
            self._asked.append(future)
            self._link.send(Find())
            address = await future
        if address is None:
            raise ConnectionError("the Controller is away")
        return address

    def _export(self, observation: Observation) -> None:
        self._link.send(Counted(observation))

    async def _beat(self) -> None:
        while True:
            self._link.send(Alive())
            await asyncio.sleep(ALIVE_S)


def _log_to(place: GatewayPlace) -> None:
    handler = logging.handlers.RotatingFileHandler(log_of(place, place.name), maxBytes=LOG_BYTES, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("swiftclaw").setLevel(logging.INFO)


async def _run(link: int) -> None:
    worker = Worker(await Link.over(socket.socket(fileno=link)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.terminate)
    await worker.run()


def main() -> NoReturn:
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # Ray kills the process group of a replica that has died
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the gateway is told, and tells its workers
    loop = asyncio.new_event_loop()
    with contextlib.suppress(ImportError):
        import uvloop  # as in Ray's processes, where it is installed

        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_run(int(sys.argv[1])))
    except Exception as error:
        log.error(
            "the worker ends: %s: %s", type(error).__name__, error, exc_info=not isinstance(error, BadCertificate | OSError)
        )
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
