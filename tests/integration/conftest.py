"""A real local Ray cluster, started with the command a user types: a node per region, free ports, a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
REGIONS = {"us-east-1": 3, "eu-west-1": 2, "ap-southeast-1": 2}
PATIENCE_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """The condition's first true value; an exception counts as not yet."""
    ends, last = time.monotonic() + seconds, None
    while time.monotonic() < ends:
        try:
            if value := condition():
                return value
        except (OSError, ValueError, KeyError, IndexError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s for: {what}" + (f" ({last!r})" if last else ""))


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:
        text = response.read().decode()
    return json.loads(text) if response.headers.get_content_type() == "application/json" else text


@dataclass
class Cluster:
    """One cluster.yaml in a folder of its own, and the command line to run it with."""

    folder: Path
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)

    @property
    def file(self) -> Path:
        return self.folder / "cluster.yaml"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def environment(self) -> dict[str, str]:
        other = ("RAY_", "SWIFTCLAW_", "PYTHONDONTWRITEBYTECODE")  # without bytecode every process would compile it all anew
        kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
        # "local": a cluster of its own, whatever else runs here. Ray's folder cannot be deep: paths of sockets are short.
        return {**kept, "RAY_TMPDIR": str(self.folder), "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def write(self, agents: dict[str, Any], *, replicas: int = 2, **args: Any) -> None:
        settings: dict[str, Any] = {
            "admin": {"port": self.admin_port},
            "gateways": [{"region": "us-east-1", "port": self.port, "replicas": replicas}],
            "agents": agents,
            **args,
        }
        application = {"name": "swiftclaw", "import_path": "deployments.app:build", "route_prefix": "/", "args": settings}
        self.file.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [application]}))

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`swiftclaw …` in the cluster's folder."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "swiftclaw"), *command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        done = self.run("up")
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def clear(self) -> None:
        """No agent is left, and nothing that an agent of the same name could remember."""
        self.write({})
        self.up()
        until(lambda: not get(f"{self.admin}/api/agents"), "no agent is left", 60)

    def instances(self, agent: str = "my-agent") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get(f"{self.admin}/api/agents/{agent}/instances")
        return found

    def healthy(self, agent: str = "my-agent") -> dict[str, int]:
        """Name -> pid of every healthy instance."""
        return {i["id"]: i["pid"] for i in self.instances(agent) if i["state"] == "healthy"}

    def gateways(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get(f"{self.admin}/api/status")["gateways"]
        return found

    @property
    def inside(self) -> dict[str, str]:
        """The environment of a program that joins the cluster."""
        record = json.loads(next(self.folder.rglob("cluster.json")).read_text())
        return {**self.environment, "RAY_ADDRESS": record["address"], "RAY_AUTH_MODE": record["auth_mode"]}

    def controller_pid(self) -> int:
        """Who listens on the admin port."""
        found = [
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == self.admin_port and c.pid
        ]
        return found[0]

    def nothing_in_flight(self) -> bool:
        rows = [row for agent in get(f"{self.admin}/api/agents") for row in self.instances(agent["name"])]
        return all(row["connections"] == 0 and row["active_connections"] == 0 for row in rows)

    def leftovers(self) -> list[str]:
        """Processes that belong to this folder."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "environ"]):
            environment = process.info["environ"] or {}
            if process.pid != os.getpid() and environment.get("RAY_TMPDIR") == str(self.folder):
                found.append(f"{process.pid} {' '.join(process.info['cmdline'] or [])[:100]}")
        return found


def my_agent(**blocks: Any) -> dict[str, Any]:
    """The example agent, as in the cluster.yaml that is shipped."""
    regions = {region: {"instances": count, "priority": 1} for region, count in REGIONS.items()}
    return {"agent": "examples.support:agent", "regions": regions, **blocks}


@contextmanager
def a_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    copy_examples(path)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def copy_examples(folder: Path) -> None:
    shutil.rmtree(folder / "examples", ignore_errors=True)
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))


@contextmanager
def a_cluster(folder: Path) -> Iterator[Cluster]:
    """Nothing runs yet; what a test starts is stopped, and nothing may be left."""
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        down = cluster.run("down") if cluster.file.exists() else None
        until(lambda: not cluster.leftovers(), f"no leftovers, but: {cluster.leftovers()}", 30)
        assert down is None or down.returncode == 0, down.stderr


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that share a cluster first, then those with a cluster of their own: the shared one ends before these."""
    own = {item.path for item in items if "folder" in getattr(item, "fixturenames", ())}
    live = sorted((item for item in items if item.path.is_relative_to(HERE)), key=lambda item: item.path in own)
    rest = [item for item in items if not item.path.is_relative_to(HERE)]
    items[:] = [*live, *rest] if items and items[0].path.is_relative_to(HERE) else [*rest, *live]


@pytest.fixture(scope="module")
def folder(shared_by_all: Shared) -> Iterator[Path]:
    """For a cluster of one's own. The shared one stops: an idle cluster takes half a core."""
    shared_by_all.close()
    with a_folder() as path:
        yield path


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Iterator[Cluster]:
    """For tests that start a cluster in their own way, or leave it unfit for others."""
    with a_cluster(folder) as cluster:
        yield cluster


class Shared:
    """One cluster for many modules, one after the other: to start one takes longer than most tests."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._cluster: Cluster | None = None

    def empty(self) -> Cluster:
        """Without an agent, whatever the module before did to it; another one if it cannot be had."""
        if self._cluster is not None:
            try:
                copy_examples(self._cluster.folder)
                self._cluster.clear()
            except AssertionError as error:
                print(f"the cluster is not what it was, and is replaced: {error}")
                self.close()
        if self._cluster is None:
            self._cluster = self._held.enter_context(a_cluster(self._held.enter_context(a_folder())))
        return self._cluster

    def close(self) -> None:
        self._cluster = None
        self._held.close()


@pytest.fixture(scope="session")
def shared_by_all() -> Iterator[Shared]:
    kept = Shared()
    yield kept
    kept.close()


@pytest.fixture(scope="module")
def shared(shared_by_all: Shared) -> Cluster:
    """Ray may run already, agents do not: a module writes what it needs, and calls `up`."""
    return shared_by_all.empty()


@pytest.fixture(scope="module")
def cluster(shared: Cluster) -> Cluster:
    """The shipped example, running: 7 instances in 3 regions, 2 gateways."""
    shared.write({"my-agent": my_agent()})
    shared.up()
    return shared
