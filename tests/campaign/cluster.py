"""A cluster in a folder of its own: its cluster.yaml, the commands that run it, its admin API and its processes.

app/    what is packed and deployed: cluster.yaml and the agent
state/  the state folder, on a small disk of its own where one can be mounted (disk.py)
flags/  sick-PID: the instance of that process reports unhealthy
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from tests.campaign import record
from tests.campaign.agent_code import agent_code
from tests.campaign.clocks import Clocks
from tests.campaign.disk import Disk
from tests.integration.network import Network

ROOT = Path(__file__).parents[2]
AGENT = "chaos"
HEAD = "us-east-1"  # the region of the gateways, and of Ray's head node


@dataclass(frozen=True)
class Settings:
    """What the cluster runs with; seconds where nothing else is said. The checker reads them from facts.json."""

    rate: float = 80.0  # requests per second
    instances: int = 2  # in each region
    gateways: int = 3
    workers: int = 0  # of each gateway
    request: float = 6.0
    queue: float = 5.0  # limits.connectionTimeout
    idle: float = 12.0
    breaker: float = 2.0
    breaker_reset: float = 5.0
    drain: float = 25.0
    deadline: float = 25.0  # for a new version to become healthy
    ttl: float = 3600.0  # of sessions
    slack: float = 1.0  # what the machine may add to every time
    network: bool = False  # a host for each region

    @property
    def facts(self) -> dict[str, float]:
        return {name: float(value) for name, value in asdict(self).items()}

    @property
    def gateway_processes(self) -> int:
        return self.gateways * (1 + self.workers)

    @classmethod
    def from_facts(cls, facts: dict[str, float]) -> Settings:
        """Of a run before: what it does not name has its default."""
        values: dict[str, Any] = {one.name: facts[one.name] for one in fields(cls) if one.name in facts}
        values |= {name: int(values[name]) for name in ("instances", "gateways", "workers") if name in values}
        return cls(**{**values, "network": bool(values.get("network"))})


REGIONS = (HEAD, "eu-west-1", "ap-southeast-1")


def config(settings: Settings, port: int, admin: int, **balancing: Any) -> dict[str, Any]:
    """The content of cluster.yaml. `balancing`: changes of the block loadBalancing."""
    affinity = {"enabled": True, "type": "cookie", "ttl": f"{settings.ttl:g}s"}
    seconds = {name: f"{value:g}s" for name, value in settings.facts.items()}
    agent = {
        "agent": "chaos_agent:agent",
        "resources": {"cpus": 0.05},
        "regions": {region: {"instances": settings.instances} for region in REGIONS},
        "loadBalancing": {"strategy": "round-robin", "sessionAffinity": affinity, **balancing},
        "healthCheck": {
            "interval": "1s",
            "timeout": f"{1 + settings.slack:g}s",
            "unhealthyThreshold": 2,
            "healthyThreshold": 2,
        },
        "limits": {"connectionTimeout": seconds["queue"], "requestTimeout": seconds["request"]},
        "timeouts": {"idle": seconds["idle"]},
        "circuitBreaker": {"failureThreshold": 5, "timeout": seconds["breaker"], "resetTimeout": seconds["breaker_reset"]},
        "canary": {"maxErrorRate": 10, "maxLatencyRatio": 4, "minRequests": 30, "interval": "8s", "steps": [20, 50, 100]},
        "drainTimeout": seconds["drain"],
    }
    args = {
        "admin": {"host": "127.0.0.1", "port": admin},
        "gateways": [
            {"region": HEAD, "host": "127.0.0.1", "port": port, "replicas": settings.gateways, "workers": settings.workers}
        ],
        "stateDir": "../state",
        "agents": {AGENT: agent},
    }
    app = {"name": "swiftclaw", "import_path": "deployments.app:build", "route_prefix": "/", "args": args}
    return {"proxy_location": "Disabled", "applications": [app]}


class Cluster:
    """`folder`: its path must be short, as Ray's sockets are below it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.app, self.state, self.flags = folder / "app", folder / "state", folder / "flags"
        self.port, self.admin = free_port(), free_port()
        self.disk: Disk | None = None  # of state/
        self.clocks: Clocks | None = None  # of its Python processes
        self.network: Network | None = None  # between the hosts of its regions, if they have any (hosts.py), and then:
        self.ray: dict[str, str] = {}  # the environment of the Ray cluster to join
        self.node_pids: dict[str, int] = {}  # region -> the process that started its Ray node
        self.start_node: Callable[[str], None] | None = None  # of a region; else `swiftclaw up` starts it
        self.temper = "well"  # of the newest version of the agent
        self._codes = 0

    @property
    def environment(self) -> dict[str, str]:
        other = ("RAY_", "SWIFTCLAW_", "PYTHONDONTWRITEBYTECODE", "COV_CORE", "COVERAGE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
        own = {"RAY_TMPDIR": str(self.folder), "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1"}
        environment = {**kept, **own, "PYTHONPATH": str(ROOT), **self.ray}
        return self.clocks.environment(environment) if self.clocks else environment

    def prepare(self) -> None:
        for one in (self.app, self.state, self.flags, self.folder / record.EXECUTIONS, self.folder / record.COMMANDS):
            one.mkdir(parents=True)
        self.disk, self.clocks = Disk(self.state), Clocks(self.folder / "clocks")
        self.write_agent("well")
        self.write_config()

    def close(self) -> None:
        """Keep the logs, remove the disk."""
        if self.disk is not None and self.disk.kind:
            ballast = shutil.ignore_patterns("ballast*")
            shutil.copytree(self.state, self.folder / "kept", symlinks=True, dirs_exist_ok=True, ignore=ballast)
            self.disk.close()

    @property
    def logs(self) -> Path:
        """Ray's logs, once the cluster is down."""
        places = ("kept/logs/ray", "state/logs/ray", "ray/session_latest/logs")
        return next((one for name in places if (one := self.folder / name).exists()), self.folder / "none")

    def write_agent(self, temper: str) -> str:
        """Put a new version of the agent into app/; the name of its code."""
        self.temper = temper
        self._codes += 1
        code = f"code{self._codes}"
        (self.app / "chaos_agent.py").write_text(agent_code(code, temper, self.folder))
        return code

    def write_config(self, **balancing: Any) -> None:
        content = config(self.settings, self.port, self.admin, **balancing)
        (self.app / "cluster.yaml").write_text(json.dumps(content, indent=1))

    # --- commands and the admin API ---------------------------------------------------------------------------------

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`swiftclaw WORDS…` in the folder of cluster.yaml, with its whole output in stdout."""
        program = str(Path(sys.executable).parent / "swiftclaw")
        return subprocess.Popen(
            [program, *words], cwd=self.app, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *words: str, timeout: float = 120.0) -> tuple[int, str]:
        """Exit status and output of a command; it is stopped after `timeout` seconds."""
        return finish(self.start(*words), timeout)

    def api(self, path: str, timeout: float = 3.0) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=timeout) as answer:
            text = answer.read().decode()
        return json.loads(text) if answer.headers.get_content_type() == "application/json" else text

    def instances(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.api(f"/api/agents/{AGENT}/instances")
        return rows

    def rollout(self) -> dict[str, Any]:
        rollout: dict[str, Any] = self.api(f"/api/agents/{AGENT}")["rollout"]
        return rollout

    def gateways(self) -> list[int]:
        """The processes of all gateways, workers among them."""
        return [row["pid"] for row in self.api("/api/status")["gateways"]]

    def forwarding(self) -> list[int]:
        """Those of them that listen on the public port."""
        rows = self.api("/api/status")["gateways"]
        return [row["pid"] for row in rows if bool(row.get("worker_of")) == bool(self.settings.workers)]

    def tasks(self) -> dict[int, int]:
        """Process -> its unfinished asyncio tasks, for gateways and the Controller."""
        series = dict(re.findall(r"^(swiftclaw_\w+_tasks\S*) (\d+)", self.api("/metrics"), re.MULTILINE))
        gateways = {
            row["pid"]: f'swiftclaw_gateway_tasks{{gateway="{row["id"]}"}}' for row in self.api("/api/status")["gateways"]
        }
        found = {pid: series.get(name) for pid, name in gateways.items()}
        if (controller := self.controller()) is not None:
            found[controller] = series.get("swiftclaw_controller_tasks")
        return {pid: int(tasks) for pid, tasks in found.items() if tasks}

    def counted(self) -> dict[str, float]:
        """swiftclaw_requests_total by status."""
        totals: Counter[str] = Counter()
        for line in self.api("/metrics").splitlines():
            if line.startswith("swiftclaw_requests_total{"):
                code = re.search(r'code="(\d+)"', line)
                totals[code[1] if code else "?"] += float(line.rsplit(" ", 1)[1])  # type: ignore[assignment]
        return dict(totals)

    # --- processes --------------------------------------------------------------------------------------------------

    def controller(self) -> int | None:
        """The process that listens on the admin port."""
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == self.admin and one.pid:
                return int(one.pid)
        return None

    def owns(self, pid: int) -> bool:
        try:
            return psutil.Process(pid).environ().get("RAY_TMPDIR") == str(self.folder)
        except psutil.Error:
            return False

    def processes(self) -> dict[int, str]:
        """The living processes of this cluster: pid -> command line."""
        found = {}
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            own = (process.info["environ"] or {}).get("RAY_TMPDIR") == str(self.folder)
            if own and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found[process.pid] = " ".join(process.info["cmdline"] or [])
        return found

    def named(self, part: str) -> list[int]:
        """The processes whose command line starts with, or runs a program named, `part`."""
        return sorted(pid for pid, line in self.processes().items() if re.match(rf"(\S*/)?{re.escape(part)}", line))

    def nodes(self) -> dict[str, int]:
        """Region -> the process that a Ray node was started with, for nodes that run."""
        if self.network is not None:
            return {region: pid for region, pid in self.node_pids.items() if pid in self.processes()}
        state = json.loads((self.state / "cluster.json").read_text())
        return {node["region"]: pid for node in state["nodes"] if psutil.pid_exists(pid := node["process"]["pid"])}

    def start_lost_nodes(self) -> None:
        """Of regions with a host of their own: `swiftclaw up` starts Ray only where it has started all of it."""
        if self.start_node is not None:
            for region in self.node_pids.keys() - self.nodes().keys():
                self.start_node(region)

    def end_all(self) -> list[str]:
        """Kill what is left; its command lines."""
        left = self.processes()
        for pid in left:
            if self.owns(pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        return [f"{pid} {line[:160]}" for pid, line in left.items()]


def finish(process: subprocess.Popen[str], timeout: float) -> tuple[int, str]:
    """Exit status and output. After `timeout` seconds it is terminated: 124, as of timeout(1)."""
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        output, _ = process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return 124, f"took more than {timeout:g} s\n{output}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
