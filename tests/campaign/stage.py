"""What a fault acts on: the cluster, its processes, its command line. Faults of many threads share one stage."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from tests.campaign import record
from tests.campaign.cluster import Cluster, finish
from tests.campaign.record import Fault
from tests.campaign.sampler import Sampler

COMMANDS_AT_ONCE = 2  # each takes seconds of CPU
SLOW_S = 30.0  # more for a command, per second of slack: a Ray node that starts on a full machine takes as long
KEPT = 2000  # characters of a command's output that are kept in the record; all of it is in commands/


class Skipped(Exception):
    """The fault cannot happen now: there is no candidate, or the machine does not let it."""


class Stage:
    def __init__(self, cluster: Cluster, sampler: Sampler) -> None:
        self.cluster, self.sampler = cluster, sampler
        self.over = threading.Event()  # the part of the run with faults has ended: what waits returns
        self._commands = threading.Semaphore(COMMANDS_AT_ONCE)
        self._packing = threading.Lock()  # the folder of cluster.yaml is as one command needs it
        self._running: set[subprocess.Popen[str]] = set()
        self._frozen: set[int] = set()

    # --- candidates -------------------------------------------------------------------------------------------------

    def instance(self, chance: random.Random) -> dict[str, Any]:
        """A healthy instance, as the admin API shows it."""
        rows = [row for row in self.cluster.instances() if row["state"] == "healthy" and row["pid"] not in self._frozen]
        if not rows:
            raise Skipped("no instance is healthy")
        return chance.choice(rows)

    def gateway(self, chance: random.Random) -> int:
        """A gateway that lives: the Controller lists a killed one for some seconds more."""
        pids = [pid for pid in sorted(self.cluster.gateways()) if self.cluster.owns(pid) and pid not in self._frozen]
        if not pids:
            raise Skipped("no gateway runs")
        return chance.choice(pids)

    def controller(self) -> int:
        pid = self.cluster.controller()
        if pid is None or not self.cluster.owns(pid):
            raise Skipped("no Controller runs")
        return pid

    def process(self, name: str) -> int:
        """The one process of the cluster with that name."""
        pids = self.cluster.named(name)
        if len(pids) != 1:
            raise Skipped(f"{len(pids)} processes named {name}")
        return pids[0]

    # --- what a fault does ------------------------------------------------------------------------------------------

    @staticmethod
    def children(pid: int) -> list[int]:
        """The processes below this one, however deep."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []

    def signal(self, pid: int, number: int) -> None:
        """Refuses a process that is not the cluster's."""
        if not self.cluster.owns(pid):
            raise Skipped(f"process {pid} is not the cluster's")
        os.kill(pid, number)

    def kill(self, fault: Fault, *pids: int) -> None:
        """All at once; the fault has struck."""
        fault.pids = [*fault.pids, *(pid for pid in pids if pid not in fault.pids)]
        for pid in pids:
            self.signal(pid, signal.SIGKILL)
            fault.struck = fault.struck or time.monotonic()

    def freeze(self, pid: int, seconds: float, fault: Fault) -> None:
        """Stop a process for so long, or until the faults are over."""
        fault.pids.append(pid)
        self.signal(pid, signal.SIGSTOP)
        self._frozen.add(pid)
        fault.struck = time.monotonic()
        try:
            self.over.wait(seconds)
        finally:
            with contextlib.suppress(Skipped, OSError):
                self.signal(pid, signal.SIGCONT)
            self._frozen.discard(pid)

    @contextlib.contextmanager
    def turn(self, fault: Fault, packing: bool = False) -> Iterator[None]:
        """Wait for the turn to run a command; only then the fault begins. `packing`: it packs the folder of cluster.yaml."""
        with self._held(self._commands), self._held(self._packing) if packing else contextlib.nullcontext():
            fault.began = time.monotonic() if not fault.struck else fault.began
            yield

    @contextlib.contextmanager
    def _held(self, lock: threading.Lock | threading.Semaphore) -> Iterator[None]:
        while not lock.acquire(timeout=0.2):
            if self.over.is_set():
                raise Skipped("the faults were over before its turn")
        try:
            yield
        finally:
            lock.release()

    def command(self, fault: Fault, *words: str, timeout: float) -> str:
        """Run `swiftclaw WORDS…`, and keep exit status and output in the fault. Its output. Wait for the `turn` first."""
        if self.over.is_set():
            raise Skipped("the faults were over before the command began")
        fault.command, began = list(words), time.monotonic()
        fault.struck = fault.struck or began
        process = self.cluster.start(*words)
        self._running.add(process)
        try:
            fault.exit_status, output = finish(process, timeout + SLOW_S * self.cluster.settings.slack)
        finally:
            self._running.discard(process)
        fault.output, fault.detail["command_s"] = output[-KEPT:], round(time.monotonic() - began, 2)
        log = self.cluster.folder / record.COMMANDS / f"{fault.number}-{words[0]}.txt"
        log.write_text(f"$ swiftclaw {' '.join(words)}\n{output}\n-> {fault.exit_status}\n")
        return output

    def clients_of(self, pids: Iterable[int]) -> list[int]:
        """The client ports of all connections to these gateways."""
        ports = []
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                connections = psutil.Process(pid).net_connections("tcp")
                ports += [one.raddr.port for one in connections if one.laddr.port == self.cluster.port and one.raddr]
        return ports

    # --- the end ----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """The faults are over: what waits returns, what runs is terminated, nothing stays frozen."""
        self.over.set()
        for process in list(self._running):
            process.terminate()
        for pid in list(self._frozen):
            with contextlib.suppress(Skipped, OSError):
                self.signal(pid, signal.SIGCONT)
