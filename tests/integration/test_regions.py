"""Three hosts, 5, 40 and 90 ms apart: the nearest region answers, a cut link moves its traffic, healing brings it back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import network
from tests.integration.conftest import PATIENCE_S, Cluster, until
from tests.integration.network import Network

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(network.missing()), reason=network.missing() or "-")]

TRIPS_MS = {("a", "b"): 5.0, ("a", "c"): 40.0, ("b", "c"): 90.0}
GCS_PORT = 6379
TOLERANT = {  # a link that is down for some seconds is no reason for Ray to give a node up
    "RAY_health_check_failure_threshold": "60",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
}
ASK = """
import json, sys, time, urllib.request, urllib.error
url, count, region = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = []
for _ in range(count):
    request = urllib.request.Request(url, json.dumps({"message": "hi"}).encode(), {"content-type": "application/json"})
    if region:
        request.add_header("x-swiftclaw-region", region)
    try:
        with urllib.request.urlopen(request, timeout=float(sys.argv[4])) as answer:
            seen.append(answer.headers["x-swiftclaw-region"])
    except urllib.error.HTTPError as error:
        seen.append(f"{error.code} {json.load(error)['error']['type']}")
    except OSError as error:
        seen.append(type(error).__name__)
print(json.dumps(seen))
"""
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


@dataclass
class Hosts:
    """A Ray node on each host, labelled with the host's name as its region; commands run on host a, where the head is."""

    net: Network
    cluster: Cluster
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        open_to_all = {"RAY_AUTH_MODE": "disabled"}  # said, or a token in the home folder would be asked for by the head alone
        return {**self.cluster.environment, **TOLERANT, **open_to_all, "RAY_ADDRESS": f"{self.net.hosts['a']}:{GCS_PORT}"}

    def start(self) -> None:
        for name, address in self.net.hosts.items():
            where = ["--head", f"--port={GCS_PORT}"] if name == "a" else [f"--address={self.net.hosts['a']}:{GCS_PORT}"]
            command = [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, f"--node-ip-address={address}",
                f"--labels=region={name}", "--num-cpus=2", "--object-store-memory=80000000", "--disable-usage-stats",
            ]  # fmt: skip
            environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
            log = self.cluster.folder / f"ray-{name}.log"
            with log.open("wb") as output:
                node = subprocess.Popen(
                    self.net.inside(name, *command), stdout=output, stderr=output, env=environment, start_new_session=True
                )
            self.nodes.append(node)
            until(partial(has_started, log), f"a Ray node on {name}")

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.net.inside("a", *command), cwd=self.cluster.folder, env=self.environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip

    def swiftclaw(self, *command: str) -> str:
        done = self.run(str(Path(sys.executable).parent / "swiftclaw"), *command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, host: str, agent: str, count: int = 20, region: str = "", patience_s: float = 20) -> Counter[str]:
        """Which regions answered a client on that host, at that host's gateway, one request after the other."""
        url = f"http://{self.net.hosts[host]}:{self.cluster.port}/agents/{agent}/messages"
        done = subprocess.run(
            self.net.inside(host, sys.executable, "-c", ASK, url, str(count), region, str(patience_s)),
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
        return Counter(json.loads(done.stdout))

    def api(self, path: str) -> Any:
        done = self.run(sys.executable, "-c", FETCH, f"{self.cluster.admin}{path}", timeout=20)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()


def has_started(log: Path) -> bool:
    return "Ray runtime started" in log.read_text()


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Hosts]:
    """Gateways everywhere; `near` runs in b and c, `wide` in all three, both routed by distance."""
    cluster = Cluster(folder)
    with Network(TRIPS_MS) as net:
        made = Hosts(net, cluster)
        try:
            made.start()
            balanced = {"agent": "examples.support:agent", "loadBalancing": {"strategy": "geographic"}}
            agents = {
                "near": {**balanced, "regions": {"b": {"instances": 1}, "c": {"instances": 1}}},
                "wide": {**balanced, "regions": {name: {"instances": 1} for name in net.hosts}},
            }
            cluster.write(agents)
            config = yaml.safe_load(cluster.file.read_text())
            config["applications"][0]["args"]["gateways"] = [
                {"region": name, "host": address, "port": cluster.port, "replicas": 1} for name, address in net.hosts.items()
            ]
            cluster.file.write_text(yaml.safe_dump(config))
            made.swiftclaw("up")
            yield made
            made.swiftclaw("down")
        finally:
            made.stop()
    until(lambda: not cluster.leftovers(), f"no leftovers, but: {cluster.leftovers()}", 60)


def test_the_nearest_region_by_measured_round_trip_answers(hosts: Hosts) -> None:
    until(lambda: set(hosts.ask("a", "near", 5)) == {"b"}, "the gateway in a has measured that b is nearer than c")
    assert hosts.ask("a", "near") == {"b": 20}
    for name in hosts.net.hosts:
        assert hosts.ask(name, "wide") == {name: 20}, "a region is always nearest to itself"


def test_a_region_that_is_cut_off_loses_its_traffic_within_seconds_and_gets_it_back_when_it_heals(hosts: Hosts) -> None:
    """b is 5 ms from a; the way to c is 40. What is sent into the cut link may wait and fail; nothing else may."""
    before = names(hosts)
    hosts.net.cut("b")
    try:
        began = time.monotonic()
        until(lambda: set(hosts.ask("a", "near", 1, patience_s=3)) == {"c"}, "c answers what b answered")
        print(f"b's traffic had moved {time.monotonic() - began:.1f} s after the cut")
        assert hosts.ask("a", "near") == {"c": 20}
        assert hosts.ask("a", "wide") == {"a": 20}
        assert hosts.ask("c", "wide") == {"c": 20}, "what the cut does not concern goes on"
        assert hosts.ask("b", "wide") == {"b": 20}, "and b's own gateway still has its own instances"
        until(lambda: current(hosts) >= {"a", "c"}, "the gateways that are not cut off hear from the Controller all the while")
    finally:
        hosts.net.heal("b")
    until(lambda: set(hosts.ask("a", "near", 5)) == {"b"}, "b answers again", 2 * PATIENCE_S)
    until(lambda: names(hosts) == before, "the same instances under the same names", 2 * PATIENCE_S)


def test_after_the_cut_all_gateways_are_of_one_mind(hosts: Hosts) -> None:
    """No split brain: every gateway acts on the newest snapshot, and all agree on where each region's clients go."""
    until(lambda: current(hosts) == set(hosts.net.hosts), "every gateway is current")
    for client in hosts.net.hosts:
        seen = {host: set(hosts.ask(host, "wide", 5, region=client)) for host in hosts.net.hosts}
        assert all(regions == {client} for regions in seen.values()), seen


def current(hosts: Hosts) -> set[str]:
    """The regions whose gateway has the newest snapshot."""
    return {gateway["region"] for gateway in hosts.api("/api/status")["gateways"] if gateway["current"]}


def names(hosts: Hosts) -> set[tuple[str, str, str]]:
    """Every healthy instance."""
    rows = [(agent, row) for agent in ("near", "wide") for row in hosts.api(f"/api/agents/{agent}/instances")]
    return {(agent, row["region"], row["id"]) for agent, row in rows if row["state"] == "healthy"}
