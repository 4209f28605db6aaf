"""The sampler writes down what the admin port shows, and every process that ends, once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil

from tests.campaign.cluster import AGENT, Cluster
from tests.campaign.record import Death, Sample, Size, read
from tests.campaign.sampler import Sampler, lives


class FakeCluster:
    """One instance, which the admin port goes on to show after its death; or an admin port that does not answer."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self._pid, self.answers = folder, pid, True

    def instances(self) -> list[dict[str, Any]]:
        if not self.answers:
            raise ConnectionRefusedError("the admin port")
        row = {"id": "instance-1", "pid": self._pid, "state": "healthy", "circuit": "closed", "version": "v1"}
        return [{**row, "region": "us-east-1", "connections": 0, "active_connections": 0, "more": "than the record holds"}]

    def api(self, path: str) -> dict[str, Any]:
        rollout = {"stable": "v1", "canary": None}
        return {"gateways": [], "agents": [{"name": AGENT, "rollout": rollout}], "warnings": ["a"], "problems": {}}

    def controller(self) -> None:
        return None

    def tasks(self) -> dict[int, int]:
        return {}


def sampling(cluster: FakeCluster, until: Callable[[], bool]) -> None:
    sampler = Sampler(cast(Cluster, cluster))
    sampler.start()
    ends = time.monotonic() + 20
    while not until():
        assert time.monotonic() < ends
        time.sleep(0.02)
    sampler.close()


def samples(folder: Path) -> list[Sample]:
    return list(read(folder / "samples.jsonl", Sample))


def test_a_process_dies_once_although_the_admin_port_still_shows_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:

        def shown_after_its_death() -> bool:
            if samples(tmp_path):
                process.kill()
            deaths = list(read(tmp_path / "deaths.jsonl", Death))
            return bool(deaths) and samples(tmp_path)[-1].at > deaths[0].at + 1

        sampling(FakeCluster(tmp_path, process.pid), shown_after_its_death)
    assert [(death.pid, death.role) for death in read(tmp_path / "deaths.jsonl", Death)] == [(process.pid, "instance")]


def test_an_admin_port_that_does_not_answer_is_a_sample_with_the_reason(tmp_path: Path) -> None:
    cluster = FakeCluster(tmp_path, 0)
    cluster.answers = False
    sampling(cluster, lambda: len(samples(tmp_path)) > 1)
    assert {sample.away for sample in samples(tmp_path)} == {"ConnectionRefusedError: the admin port"}


def test_every_third_sample_is_a_whole_one_and_sizes_are_read(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        sampling(FakeCluster(tmp_path, process.pid), lambda: len(samples(tmp_path)) >= 7)
        process.kill()
    assert [sample.whole for sample in samples(tmp_path)[:7]] == [True, False, False, True, False, False, True]
    assert samples(tmp_path)[0].rollout == {"stable": "v1", "canary": None}
    assert {(size.pid, size.role) for size in read(tmp_path / "sizes.jsonl", Size)} == {(process.pid, "instance")}


FIRST_THREAD_ENDS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit: of this thread alone
"""


def test_a_process_lives_until_its_last_thread_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS]) as child:
        process = psutil.Process(child.pid)
        ends = time.monotonic() + 20
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < ends
            time.sleep(0.02)
        assert lives(process)
        child.kill()
        while lives(process):  # its parent has not asked for its status: it is a zombie to the end
            assert time.monotonic() < ends
            time.sleep(0.02)
