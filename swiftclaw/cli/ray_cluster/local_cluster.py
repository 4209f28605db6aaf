"""A Ray cluster on this machine: a head node for the first region and one more Ray node for each further region.

Each node is a recorded process, because `ray stop` would stop every Ray process of this user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster import cluster_record, driver, ports, processes
from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord, RecordedNode

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 256 * 2**20  # agents' traffic does not use Ray's object store
NODE_START_S = 120.0
NODE_STOP_S = 1.0  # short: Serve has been shut down before, so nothing can be lost
STARTED = "Ray runtime started"  # `ray start` prints this when the node is ready
Report = Callable[[str], None]


def start(regions: Sequence[str], folder: Path, taken: set[int], report: Report) -> ClusterRecord:
    """Returns when every node is ready. After an error the record holds what was started: call `stop`."""
    # A short path: Ray's sockets are created below it, and a socket's path may have 107 characters.
    temp_dir = tempfile.mkdtemp(prefix="swiftclaw-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    cluster = ClusterRecord("", started_ray=True, temp_dir=temp_dir, auth_mode=driver.auth_mode())
    report(f"starting Ray on this machine: region {regions[0]} (head)")
    with _port_lock():
        _launch_with_retry(cluster, folder, regions[0], lambda: _head(cluster, taken), report)
    _link_logs(cluster, folder)
    add(cluster, folder, regions[1:], report)
    return cluster


def _head(cluster: ClusterRecord, taken: set[int]) -> list[str]:
    """The arguments for the head node, with ports that are free now."""
    gcs, dashboard, client = (ports.free(preferred, taken) for preferred in (6379, 8265, 10001))
    cluster.address, cluster.dashboard = f"{HOST}:{gcs}", f"{HOST}:{dashboard}"
    return [
        "--head", f"--port={gcs}", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", "--disable-usage-stats",
    ]  # fmt: skip


@contextlib.contextmanager
def _port_lock() -> Iterator[None]:
    """Make a second `up` wait: two at once could choose the same free ports."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without the lock a conflict is unlikely
            lock = (Path(tempfile.gettempdir()) / f"swiftclaw-ports-{os.getuid()}.lock").open("w")
            fcntl.flock(stack.enter_context(lock), fcntl.LOCK_EX)
        yield


def add(cluster: ClusterRecord, folder: Path, regions: Sequence[str], report: Report) -> None:
    """Start one more node for each region."""
    for region in regions:  # in turn: nodes that start at the same moment choose the same socket names
        report(f"starting Ray on this machine: region {region}")
        _launch_with_retry(cluster, folder, region, lambda: [f"--address={cluster.address}"], report)


def is_running(cluster: ClusterRecord) -> bool:
    """Whether the head node runs."""
    return bool(cluster.nodes) and processes.find(cluster.nodes[0].process) is not None


def missing(cluster: ClusterRecord, regions: Sequence[str]) -> list[str]:
    """The regions without a running node."""
    present = {node.region for node in cluster.nodes if processes.find(node.process)}
    return [region for region in regions if region not in present]


def stop(cluster: ClusterRecord, folder: Path) -> str:
    """Stop the whole cluster, whatever the state of the state folder. Ray's logs stay there.

    Returns what could not be written there, as a sentence; "": nothing.
    """
    _end(cluster, cluster.nodes)
    problem = ""
    try:
        _keep_logs(cluster, folder)
    except OSError as error:
        problem = f"Ray's logs could not be kept in {folder / 'logs'}: {_why(error)}"
    finally:
        if cluster.temp_dir:
            shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    return cluster_record.remove(folder) or problem


def stop_nodes(cluster: ClusterRecord, folder: Path, nodes: Sequence[RecordedNode]) -> None:
    _end(cluster, nodes)
    cluster_record.save(folder, cluster)


def _end(cluster: ClusterRecord, nodes: Sequence[RecordedNode]) -> None:
    processes.stop([node.process for node in nodes], NODE_STOP_S, mark=cluster.temp_dir)
    cluster.nodes = [node for node in cluster.nodes if node not in nodes]


def _launch_with_retry(
    cluster: ClusterRecord, folder: Path, region: str, arguments: Callable[[], Sequence[str]], report: Report
) -> None:
    """Retry once: a node chooses many ports, and another program may take one between the choice and its use."""
    try:
        _launch(cluster, folder, region, arguments())
    except CommandFailed as error:
        report(f"{error}; retrying")
        stop_nodes(cluster, folder, cluster.nodes[-1:])
        log = _log(folder, region)
        log.replace(log.with_suffix(".first.log"))
        _launch(cluster, folder, region, arguments())


def _log(folder: Path, region: str) -> Path:
    return folder / "logs" / f"ray-{re.sub(r'[^A-Za-z0-9_.-]', '_', region)}.log"


def _launch(cluster: ClusterRecord, folder: Path, region: str, arguments: Sequence[str]) -> None:
    log = _log(folder, region)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments,
        f"--node-ip-address={HOST}", f"--labels=region={region}", f"--temp-dir={cluster.temp_dir}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",  # it forwards workers' logs to drivers, and none stays connected
        "--min-worker-port=0", "--max-worker-port=0",  # any free port: all nodes here would share Ray's fixed range
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # `down` drains before it stops a node
    }
    environment.pop("RAY_ADDRESS", None)
    if cluster.auth_mode:
        environment["RAY_AUTH_MODE"] = cluster.auth_mode
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    cluster.nodes.append(RecordedNode(region, processes.identify(child.pid)))
    cluster_record.save(folder, cluster)
    _await(child, log, region)


def _await(child: subprocess.Popen[bytes], log: Path, region: str) -> None:
    deadline = time.monotonic() + NODE_START_S
    while STARTED not in (output := log.read_text("utf-8", "replace")):
        if child.poll() is not None:
            raise CommandFailed(f"the Ray node for region {region} did not start: {_reason(output)} (see {log})")
        if time.monotonic() > deadline:
            raise CommandFailed(f"the Ray node for region {region} did not start within {NODE_START_S:.0f} s (see {log})")
        time.sleep(0.05)
    child.returncode = 0  # it outlives this program: suppress the warning that it was not waited for


def _reason(output: str) -> str:
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"


def _link_logs(cluster: ClusterRecord, folder: Path) -> None:
    """Link Ray's logs, which hold the tracebacks of agents, to `logs/ray` in the state folder."""
    link = folder / "logs" / "ray"
    _clear(link)
    link.symlink_to(Path(cluster.temp_dir) / "session_latest" / "logs")


def _keep_logs(cluster: ClusterRecord, folder: Path) -> None:
    logs = Path(cluster.temp_dir) / "session_latest" / "logs"
    kept = folder / "logs" / "ray"
    if cluster.temp_dir and logs.is_dir():
        _clear(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(logs.resolve(), kept, symlinks=True)


def _why(error: OSError) -> str:
    """The reason in a word; `shutil.Error` lists (source, destination, reason) of every file."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][-1][-1]).partition(": ")[0]
    return error.strerror or str(error)


def _clear(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
