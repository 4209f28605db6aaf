"""A SwiftClaw cluster of its own, started and stopped as a user does: `swiftclaw up`, `swiftclaw down`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.desired.state import Store
from comparison import HOST, processes
from comparison.processes import CannotStart

REGION = "us-east-1"


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `url`: of its gateways; `admin`: of its admin port."""

    folder: Path
    url: str
    admin: str


@dataclass(frozen=True)
class Instance:
    """`address`: host:port; `key`: what a request must carry in `x-swiftclaw-key`."""

    address: str
    key: str


@contextlib.contextmanager
def up(
    folder: Path,
    agents: Mapping[str, Any],
    gateway: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """`agents`: their blocks of cluster.yaml. `gateway`: more settings of the one `gateways` entry, which has 1 replica."""
    port, admin_port = processes.free_port(), processes.free_port()
    args = {
        "admin": {"port": admin_port},
        "gateways": [{"region": REGION, "port": port, "replicas": 1, **(gateway or {})}],
        "agents": dict(agents),
    }
    app = {"name": "swiftclaw", "import_path": "deployments.app:build", "route_prefix": "/", "args": args}
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [app]}))
    variables = {**processes.environment(folder), **(environment or {})}

    def command(name: str) -> None:
        line = [sys.executable, "-c", "from swiftclaw.cli import main; main()", name]
        done = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise CannotStart(f"swiftclaw {name}: {done.stdout}{done.stderr}")

    command("up")  # undoes what it began if it fails
    try:
        yield Cluster(folder, f"http://{HOST}:{port}", f"http://{HOST}:{admin_port}")
    finally:
        command("down")


def instances(folder: Path) -> list[Instance]:
    """The instances of the cluster that was started in `folder`, as its state has them. Raises CannotStart."""
    store = Store(folder / ".swiftclaw")
    state = store.load()
    if state is None or not state.instances:
        raise CannotStart("swiftclaw: no instance in its state")
    registrations = [entry["registration"] for entry in state.instances]
    return [Instance(f"{one['host']}:{one['port']}", store.key()) for one in registrations]
