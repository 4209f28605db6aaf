"""Workers in a running cluster: who listens, who is counted, and what happens when a worker or its gateway is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Cluster, a_cluster, get, my_agent, until

pytestmark = pytest.mark.cluster
BY_HANDLE = """
import asyncio
from swiftclaw import connect

async def main():
    agent = connect("my-agent")
    reply = await agent.ask("hello")
    print("asked", bool(reply))
    print("streamed", len([piece async for piece in agent.stream("hello")]) > 0)

asyncio.run(main())
"""


def send(cluster: Cluster) -> int:
    body = json.dumps({"message": "hello"}).encode()
    request = urllib.request.Request(
        f"{cluster.url}/agents/my-agent/messages", body, {"content-type": "application/json", "connection": "close"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        response.read()
        return int(response.status)


def workers(cluster: Cluster) -> list[dict[str, Any]]:
    return [gateway for gateway in cluster.gateways() if gateway["worker_of"]]


def replicas(cluster: Cluster) -> list[dict[str, Any]]:
    return [gateway for gateway in cluster.gateways() if not gateway["worker_of"]]


def listening(cluster: Cluster) -> set[int]:
    found = psutil.net_connections("tcp")
    return {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == cluster.port and c.pid}


class Prober:
    """Sends a request on a new connection every 50 ms, and keeps what did not end well."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._ends = cluster, threading.Event()
        self.sent, self.failed = 0, list[str]()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ends.wait(0.05):
            self.sent += 1
            try:
                send(self._cluster)
            except OSError as error:
                self.failed.append(repr(error))


def test_workers_take_the_load_and_survive_kills(folder: Path) -> None:
    with a_cluster(folder) as cluster:
        gateway = {"region": "us-east-1", "port": cluster.port, "replicas": 1, "workers": 2}
        agent = my_agent(regions={"us-east-1": {"instances": 2, "priority": 1}})
        cluster.write({"my-agent": agent}, gateways=[gateway])
        cluster.up()
        (replica,) = replicas(cluster)
        until(lambda: len(workers(cluster)) == 2, "two workers are registered")
        assert {one["worker_of"] for one in workers(cluster)} == {replica["id"]}
        by_hand = cluster.run("status").stdout
        assert "WORKERS" in by_hand

        for _ in range(20):
            assert send(cluster) == 200
        until(lambda: get(f"{cluster.admin}/api/agents")[0]["requests"] == 20, "what workers answered is counted")
        called = subprocess.run(
            [sys.executable, "-c", BY_HANDLE],
            cwd=cluster.folder,
            env=cluster.inside,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert called.stdout.split() == ["asked", "True", "streamed", "True"], called.stderr
        until(lambda: get(f"{cluster.admin}/api/agents")[0]["requests"] == 22, "calls by handle are counted as well")

        killed = workers(cluster)[0]
        with Prober(cluster) as prober:
            os.kill(killed["pid"], signal.SIGKILL)
            until(lambda: len({w["id"] for w in workers(cluster)} - {killed["id"]}) == 2, "a new worker")
            sent = prober.sent
            until(lambda: prober.sent > sent + 10, "requests that may reach it")
        assert not [failure for failure in prober.failed if "refused" in failure.lower()], prober.failed
        assert len(prober.failed) <= 1  # the one that the killed worker had

        orphans = {worker["pid"] for worker in workers(cluster)}
        with Prober(cluster) as prober:
            os.kill(replica["pid"], signal.SIGKILL)
            until(lambda: [r["id"] for r in replicas(cluster) if r["id"] != replica["id"]], "Serve starts another replica")
            until(lambda: len({w["pid"] for w in workers(cluster)} - orphans) == 2, "with workers of its own")
            until(lambda: not listening(cluster) & orphans, "the old workers leave")
        assert prober.failed == []
        assert prober.sent > 20
        until(lambda: not any(map(psutil.pid_exists, orphans)), "the old workers end")
        assert send(cluster) == 200
