"""A thread that looks at the cluster several times a second: what the admin port shows, which processes end, what they hold."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import psutil

from tests.campaign import record
from tests.campaign.cluster import AGENT, Cluster
from tests.campaign.record import Death, InstanceRow, Lines, Sample, Size

LOOK_S = 0.1  # between two looks at the processes; every third look reads the instances, every ninth everything
SIZES_EVERY = 50  # looks


class Sampler(threading.Thread):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True, name="sampler")
        self._cluster = cluster
        self._samples, self._deaths, self._sizes = (
            Lines(cluster.folder / f"{name}.jsonl") for name in (record.SAMPLES, record.DEATHS, record.SIZES)
        )
        self._alive: dict[int, tuple[str, psutil.Process]] = {}
        self._dead: set[int] = set()  # the admin port may show them for a while
        self._stop_event = threading.Event()
        self.latest: list[InstanceRow] = []

    def run(self) -> None:
        number = 0
        while not self._stop_event.wait(LOOK_S):
            self._write_deaths()
            if number % 3 == 0:
                self._samples.write(self._sample(whole=number % 9 == 0))
            if number % SIZES_EVERY == 0:
                self._write_sizes()
            number += 1

    def close(self) -> None:
        self._stop_event.set()
        self.join()
        for lines in (self._samples, self._deaths, self._sizes):
            lines.close()

    def _sample(self, whole: bool) -> Sample:
        sample = Sample(at=time.monotonic())
        try:
            sample.instances = [instance_row(row) for row in self._cluster.instances()]
            if whole:
                self._add_status(sample, self._cluster.api("/api/status"))
        except (OSError, ValueError, KeyError) as error:
            return Sample(at=sample.at, took=round(time.monotonic() - sample.at, 3), away=f"{type(error).__name__}: {error}")
        sample.took = round(time.monotonic() - sample.at, 3)
        self.latest = sample.instances
        for row in sample.instances:
            self._observe(row.pid, "instance")
        for pid in sample.gateways:
            self._observe(pid, "gateway")
        return sample

    @staticmethod
    def _add_status(sample: Sample, status: dict[str, Any]) -> None:
        pids = {row["id"]: row["pid"] for row in status["gateways"]}
        sample.gateways = [*pids.values()]
        sample.workers = [(row["pid"], pids.get(row["worker_of"], 0)) for row in status["gateways"] if row.get("worker_of")]
        sample.rollout = next((agent["rollout"] or {} for agent in status["agents"] if agent["name"] == AGENT), {})
        sample.warnings, sample.problems = status["warnings"], status["problems"]
        sample.whole = True

    def _observe(self, pid: int, role: str) -> None:
        if pid and pid not in self._alive and pid not in self._dead:
            with contextlib.suppress(psutil.Error):
                self._alive[pid] = role, psutil.Process(pid)

    def _write_deaths(self) -> None:
        for pid, (role, process) in list(self._alive.items()):
            if not lives(process):
                del self._alive[pid]
                self._dead.add(pid)
                self._deaths.write(Death(time.monotonic(), pid, role))

    def _write_sizes(self) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            if controller := self._cluster.controller():
                self._observe(controller, "controller")
        tasks: dict[int, int] = {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            tasks = self._cluster.tasks()
        for pid, (role, process) in list(self._alive.items()):
            with contextlib.suppress(psutil.Error), process.oneshot():
                cpu = process.cpu_times()
                rss_kib = process.memory_info().rss >> 10
                files, threads = process.num_fds(), process.num_threads()
                cpu_s = round(cpu.user + cpu.system, 2)
                self._sizes.write(Size(time.monotonic(), pid, role, rss_kib, files, threads, cpu_s, tasks.get(pid, 0)))


def lives(process: psutil.Process) -> bool:
    """Whether any thread of it does. On a full machine the first may end seconds before the last, with which sockets close."""
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


def instance_row(row: dict[str, Any]) -> InstanceRow:
    return InstanceRow(**{name: row[name] for name in InstanceRow.__dataclass_fields__})
