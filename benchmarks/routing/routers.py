"""Each router that is compared: how it is started in front of the stub, and which processes are its own.

Settings that are not the router's defaults are those that the comparison needs, and stand in the report's notes: round-robin,
one thread of HAProxy and nginx, no access log, kept connections, room for 500 streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from comparison import HOST, processes, swiftclaw_cluster
from comparison.processes import CannotStart

from routing import installed, usage
from routing import stubs as bare
from routing.client import Target
from routing.paced import chat
from routing.stub import ANSWER, LOG_VARIABLE
from routing.stubs import Stubs

PATH = "/v1/chat/completions"
AGENT = "stub"
LOG = "executions"
RESTART_S = 2.0  # after the kill, as a supervisor would; Ray does it for SwiftClaw
ROOM = 1000  # requests at a time per instance; SwiftClaw's default of 100 would make 300 of the 500 streams wait
SWIFTCLAW: Mapping[str, Mapping[str, object]] = {  # contender -> settings of its `gateways` entry
    "swiftclaw": {"replicas": 1},
    "swiftclaw-2": {"replicas": 2},
    "swiftclaw-w1": {"replicas": 1, "workers": 1},
    "swiftclaw-w2": {"replicas": 1, "workers": 2},
}
HAPROXY_CONFIG = """\
global
    maxconn 8192
    nbthread {threads}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-no-delay
    option redispatch
frontend public
    bind {host}:{port}
    default_backend instances
backend instances
    balance roundrobin
    http-reuse always
    default-server check
{servers}
"""
NGINX_CONFIG = """\
daemon off;
{user}worker_processes {threads};
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream instances {{
{servers}
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {host}:{port};
        keepalive_requests 1000000000;
        location / {{
            proxy_pass http://instances;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Router:
    """A running contender.

    `targets`: where requests are sent, one after the other; `own`: its processes now, none for a direct call; `beside`: what
    else runs for it, but the instances. `kill` ends an instance; None: failover is not measured. `log`: of the executions.
    """

    name: str
    targets: Sequence[Target]
    own: Callable[[], list[psutil.Process]]
    beside: Callable[[], list[psutil.Process]]
    log: Path
    kill: Callable[[], None] | None = None
    restart: Callable[[], None] | None = None

    def executions(self) -> list[tuple[str, int]]:
        """The id of each request that an instance began, and the instance's process."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [(id, int(pid)) for id, _, pid in (line.partition(" ") for line in lines)]


@contextlib.contextmanager
def fielded(turn: Sequence[str], threads: int) -> Iterator[list[Router]]:
    """Run the contenders of one of TURNS. Raises CannotStart and NotInstalled; on exit all of their processes have ended."""
    with processes.working_folder() as parent, processes.folder("r", parent) as folder:
        log = folder / LOG
        if turn[0] in SWIFTCLAW:
            with _swiftclaw(turn, folder, log) as routers:
                yield routers
            return
        with bare.running(folder, log) as stubs, START[turn[0]](folder, stubs, threads) as router:
            until_right(router)
            yield [router]


@contextlib.contextmanager
def _direct(folder: Path, stubs: Stubs, threads: int) -> Iterator[Router]:
    """No router: the base of the latency that the others add."""
    targets = [Target(f"http://{address}{PATH}") for address in stubs.addresses]
    yield Router("direct", targets, _no_processes, _no_processes, folder / LOG)


@contextlib.contextmanager
def _haproxy(folder: Path, stubs: Stubs, threads: int) -> Iterator[Router]:
    servers = "\n".join(f"    server s{number} {address}" for number, address in enumerate(stubs.addresses))
    port = processes.free_port()
    file = folder / "haproxy.cfg"
    file.write_text(HAPROXY_CONFIG.format(threads=threads, host=HOST, port=port, servers=servers))
    with _process("haproxy", [installed.haproxy(), "-db", "-f", str(file)], folder, stubs, port) as router:
        yield router


@contextlib.contextmanager
def _nginx(folder: Path, stubs: Stubs, threads: int) -> Iterator[Router]:
    servers = "\n".join(f"        server {address};" for address in stubs.addresses)
    port = processes.free_port()
    file = folder / "nginx.conf"
    user = "" if os.geteuid() else "user root;\n"  # else the worker could not enter the folder
    file.write_text(NGINX_CONFIG.format(threads=threads, host=HOST, port=port, servers=servers, folder=folder, user=user))
    command = [installed.nginx(), "-e", "stderr", "-p", str(folder), "-c", str(file)]
    with _process("nginx", command, folder, stubs, port) as router:
        yield router


@contextlib.contextmanager
def _vllm_router(folder: Path, stubs: Stubs, threads: int) -> Iterator[Router]:
    python = installed.from_pypi("vllm-router")
    with _of_model_servers("vllm-router", [python, "-m", "vllm_router.launch_router"], "warning", folder, stubs) as router:
        yield router


@contextlib.contextmanager
def _sglang_router(folder: Path, stubs: Stubs, threads: int) -> Iterator[Router]:
    python = installed.from_pypi("sglang-router")
    with _of_model_servers("sglang-router", [python, "-m", "sglang_router.launch_router"], "warn", folder, stubs) as router:
        yield router


@contextlib.contextmanager
def _of_model_servers(name: str, command: list[str], log_level: str, folder: Path, stubs: Stubs) -> Iterator[Router]:
    port, metrics_port = processes.free_port(), processes.free_port()
    options = [
        "--host", HOST, "--port", str(port), "--prometheus-host", HOST, "--prometheus-port", str(metrics_port),
        "--policy", "round_robin", "--log-level", log_level, "--worker-urls", *(f"http://{one}" for one in stubs.addresses),
    ]  # fmt: skip
    with _process(name, [*command, *options], folder, stubs, port) as router:
        yield router


START: Mapping[str, Callable[[Path, Stubs, int], contextlib.AbstractContextManager[Router]]] = {
    "direct": _direct,
    "haproxy": _haproxy,
    "nginx": _nginx,
    "vllm-router": _vllm_router,
    "sglang-router": _sglang_router,
}
TURNS: Sequence[tuple[str, ...]] = (  # in each round; what is named together is up together
    ("direct",),
    ("haproxy",),
    ("nginx",),
    ("vllm-router",),
    ("sglang-router",),
    ("swiftclaw", "instance"),
    *((name,) for name in SWIFTCLAW if name != "swiftclaw"),
)


@contextlib.contextmanager
def _process(name: str, command: list[str], folder: Path, stubs: Stubs, port: int) -> Iterator[Router]:
    """A router that is one process with its children, listening on that port."""
    with processes.running(command, folder, {"PYTHONPATH": ""}) as started:
        process = psutil.Process(started.pid)
        processes.until_listening(name, port)
        yield Router(
            name,
            [Target(f"http://{HOST}:{port}{PATH}")],
            lambda: usage.family(process),
            _no_processes,
            folder / LOG,
            stubs.kill,
            stubs.restart,
        )


@contextlib.contextmanager
def _swiftclaw(turn: Sequence[str], folder: Path, log: Path) -> Iterator[list[Router]]:
    """A cluster as `swiftclaw up` starts it, and, if it is asked for, one of its instances without the gateway."""
    name = turn[0]
    agent = {
        "agent": "routing.stub_agent:agent",
        "regions": {swiftclaw_cluster.REGION: {"instances": bare.COUNT, "priority": 1}},
        "limits": {"maxConnectionsPerInstance": ROOM},
    }
    with swiftclaw_cluster.up(folder, {AGENT: agent}, SWIFTCLAW[name], {LOG_VARIABLE: str(log)}) as cluster:

        def get(path: str) -> list[psutil.Process]:
            with urllib.request.urlopen(cluster.admin + path, timeout=10) as response:
                found = json.load(response)
            rows = found["gateways"] if isinstance(found, dict) else found
            return [psutil.Process(row["pid"]) for row in rows if row["pid"] and not row.get("worker_of")]

        gateways = get("/api/status")
        instances = get(f"/api/agents/{AGENT}/instances")

        def own() -> list[psutil.Process]:
            return [one for gateway in gateways for one in usage.family(gateway)]  # a gateway's workers are its children

        def beside() -> list[psutil.Process]:
            others = {*own(), *instances}
            return [process for process in processes.processes_of(folder) if process not in others]

        routers = [
            Router(
                name,
                [Target(f"{cluster.url}/agents/{AGENT}{PATH}")],
                own,
                beside,
                log,
                instances[0].kill,
            )
        ]
        if "instance" in turn:
            found = swiftclaw_cluster.instances(folder)
            targets = [Target(f"http://{one.address}{PATH}", {"x-swiftclaw-key": one.key}) for one in found]
            routers.append(Router("instance", targets, _no_processes, _no_processes, log))
        for router in routers:
            until_right(router)
        yield routers


def until_right(router: Router) -> None:
    """Wait until the router gives the stub's answer, and both instances have answered. Raises CannotStart."""
    deadline = time.monotonic() + processes.PATIENCE_S
    while (reason := _not_ready(router)) is not None:
        if time.monotonic() > deadline:
            raise CannotStart(f"{router.name}: {reason}")
        time.sleep(0.1)


def _not_ready(router: Router) -> str | None:
    """Send a request to each target; what is missing, if anything is."""
    for target in router.targets:
        headers = {"content-type": "application/json", **target.headers}
        request = urllib.request.Request(target.url, chat(id="first"), headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                content = response.read()
            if json.loads(content) != json.loads(ANSWER):
                return repr(content[:200])
        except (OSError, ValueError) as error:
            return str(error)
    instances = {pid for _, pid in router.executions()}
    return None if len(instances) == bare.COUNT else f"only {len(instances)} of the {bare.COUNT} instances gets requests"


def _no_processes() -> list[psutil.Process]:
    return []
