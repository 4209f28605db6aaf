"""A host per region: a network namespace with a Ray node each, joined by a network that can be cut and delayed.

The campaign itself moves to the host of the first region: its clients and its `swiftclaw` run where the gateways and the
Controller listen, on 127.0.0.1 there. `swiftclaw up` joins the Ray cluster that this starts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

from tests.campaign.cluster import HEAD, REGIONS, Cluster
from tests.integration import network
from tests.integration.network import Network

GCS_PORT = 6379
DISTANCE_MS = 2.0
START_S = 120.0
STARTED = "Ray runtime started"
TOLERANT = {  # Ray gives a node up that cannot be reached for about 25 s: no cut lasts as long
    "RAY_health_check_failure_threshold": "8",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
}


def missing() -> str:
    """Why this machine cannot do it; "": it can."""
    return network.missing()


class Hosts:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._network = Network(dict.fromkeys(combinations(REGIONS, 2), DISTANCE_MS))
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._held = ExitStack()

    def start(self) -> None:
        """Call it in the main thread, before others are started: they inherit its host. Undone by `close`, there too."""
        self._cluster.network = self._held.enter_context(self._network)
        self._held.enter_context(self._network.entered(HEAD))
        self._cluster.ray = {**TOLERANT, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"{self._network.hosts[HEAD]}:{GCS_PORT}"}
        for region in REGIONS:
            self.start_node(region)
        self._cluster.start_node = self.start_node

    def start_node(self, region: str) -> None:
        where = ["--head", f"--port={GCS_PORT}", "--dashboard-host=127.0.0.1"]
        if region != HEAD:
            where = [f"--address={self._network.hosts[HEAD]}:{GCS_PORT}"]
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where,
            f"--node-ip-address={self._network.hosts[region]}", f"--labels=region={region}",
            "--object-store-memory=80000000", "--include-log-monitor=false", "--disable-usage-stats",
        ]  # fmt: skip
        environment = {name: value for name, value in self._cluster.environment.items() if name != "RAY_ADDRESS"}
        log = self._cluster.folder / f"ray-{region}.log"
        with log.open("wb") as output, self._network.entered(region):
            node = self._nodes[region] = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True, cwd="/"
            )
        self._cluster.node_pids[region] = node.pid
        _await(node, log, region)

    def close(self) -> None:
        """The nodes end, and the hosts with them; this thread is where it was before."""
        for node in reversed(self._nodes.values()):
            node.terminate()
        for node in self._nodes.values():
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        self._held.close()
        self._cluster.network = self._cluster.start_node = None


def _await(node: subprocess.Popen[bytes], log: Path, region: str) -> None:
    deadline = time.monotonic() + START_S
    while STARTED not in log.read_text("utf-8", "replace"):
        if node.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"no Ray node started for {region}, see {log}")
        time.sleep(0.1)
