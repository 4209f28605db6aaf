"""A Ray cluster on this machine: a head, and one more Ray node per further region, each a child process of ours.

Ray's own commands would do it too, but `ray stop` stops every Ray of this user; here each process is remembered.
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

from swiftclaw.cli import ray_driver
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.local import cluster_record, ports, processes
from swiftclaw.cli.local.cluster_record import ClusterRecord, RecordedNode

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 256 * 2**20  # agents' traffic does not go through Ray's object store
NODE_START_S = 60.0
NODE_STOP_S = 1.0  # by then Serve has been shut down, and whatever is left of Ray has nothing to lose
STARTED = "Ray runtime started"  # what `ray start` prints when the node is there
Say = Callable[[str], None]


def start(regions: Sequence[str], folder: Path, taken: set[int], say: Say) -> ClusterRecord:
    """Returns when every node is there. What was started until an error is in the record: `stop` it."""
    # In /tmp by choice: the paths of Ray's sockets, made below it, may have 107 characters in all.
    temp_dir = tempfile.mkdtemp(prefix="swiftclaw-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    made = ClusterRecord("", started_ray=True, temp_dir=temp_dir, auth_mode=ray_driver.auth_mode())
    say(f"starting Ray on this machine: region {regions[0]} (head)")
    with _ports_to_ourselves():
        _launch_or_again(made, folder, regions[0], lambda: _head(made, taken), say)
    _link_logs(made, folder)
    add(made, folder, regions[1:], say)
    return made


def _head(made: ClusterRecord, taken: set[int]) -> list[str]:
    """The head's own arguments, with ports that are free now."""
    gcs, dashboard, client = (ports.free(preferred, taken) for preferred in (6379, 8265, 10001))
    made.address, made.dashboard = f"{HOST}:{gcs}", f"{HOST}:{dashboard}"
    return [
        "--head", f"--port={gcs}", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", "--disable-usage-stats",
    ]  # fmt: skip


@contextlib.contextmanager
def _ports_to_ourselves() -> Iterator[None]:
    """Two `up` at once would both see the same ports free, and both choose them: one of them waits for the other."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # without the lock it nearly always works too
            lock = (Path(tempfile.gettempdir()) / f"swiftclaw-ports-{os.getuid()}.lock").open("w")
            fcntl.flock(held.enter_context(lock), fcntl.LOCK_EX)
        yield


def add(made: ClusterRecord, folder: Path, regions: Sequence[str], say: Say) -> None:
    """One more node for each region."""
    for region in regions:  # one after the other: nodes that start at once take the same names for their sockets
        say(f"starting Ray on this machine: region {region}")
        _launch_or_again(made, folder, region, lambda: [f"--address={made.address}"], say)


def running(made: ClusterRecord) -> bool:
    """Whether the head is there."""
    return bool(made.nodes) and processes.find(made.nodes[0].process) is not None


def missing(made: ClusterRecord, regions: Sequence[str]) -> list[str]:
    """The regions that have no living node."""
    present = {node.region for node in made.nodes if processes.find(node.process)}
    return [region for region in regions if region not in present]


def stop(made: ClusterRecord, folder: Path) -> None:
    """The whole cluster; its logs stay in the state folder."""
    stop_nodes(made, folder, made.nodes)
    _keep_logs(made, folder)
    cluster_record.remove(folder)


def stop_nodes(made: ClusterRecord, folder: Path, nodes: Sequence[RecordedNode]) -> None:
    processes.stop([node.process for node in nodes], NODE_STOP_S, mark=made.temp_dir)
    made.nodes = [node for node in made.nodes if node not in nodes]
    cluster_record.save(folder, made)


def _launch_or_again(made: ClusterRecord, folder: Path, region: str, arguments: Callable[[], Sequence[str]], say: Say) -> None:
    """A node's processes choose many ports each; on a busy machine one may be taken between the choice and its use."""
    try:
        _launch(made, folder, region, arguments())
    except CommandFailed as error:
        say(f"{error}; trying again")
        stop_nodes(made, folder, made.nodes[-1:])
        log = _log(folder, region)
        log.replace(log.with_suffix(".first.log"))
        _launch(made, folder, region, arguments())


def _log(folder: Path, region: str) -> Path:
    return folder / "logs" / f"ray-{re.sub(r'[^A-Za-z0-9_.-]', '_', region)}.log"


def _launch(made: ClusterRecord, folder: Path, region: str, arguments: Sequence[str]) -> None:
    log = _log(folder, region)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments,
        f"--node-ip-address={HOST}", f"--labels=region={region}", f"--temp-dir={made.temp_dir}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",  # it prints workers' logs at drivers, and none stays
        "--min-worker-port=0", "--max-worker-port=0",  # any: Ray's fixed range would be shared by all nodes here
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # `down` has drained before it stops a node
    }
    environment.pop("RAY_ADDRESS", None)
    if made.auth_mode:
        environment["RAY_AUTH_MODE"] = made.auth_mode
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    made.nodes.append(RecordedNode(region, processes.remember(child.pid)))
    cluster_record.save(folder, made)
    _await(child, log, region)


def _await(child: subprocess.Popen[bytes], log: Path, region: str) -> None:
    deadline = time.monotonic() + NODE_START_S
    while STARTED not in (said := log.read_text("utf-8", "replace")):
        if child.poll() is not None:
            raise CommandFailed(f"the Ray node for region {region} did not start: {_reason(said)} (see {log})")
        if time.monotonic() > deadline:
            raise CommandFailed(f"the Ray node for region {region} is not there after {NODE_START_S:.0f} s (see {log})")
        time.sleep(0.05)
    child.returncode = 0  # it shall outlive us: no warning that it was not waited for


def _reason(said: str) -> str:
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _link_logs(made: ClusterRecord, folder: Path) -> None:
    """<state folder>/logs/ray: where the tracebacks of agents are."""
    link = folder / "logs" / "ray"
    _clear(link)
    link.symlink_to(Path(made.temp_dir) / "session_latest" / "logs")


def _keep_logs(made: ClusterRecord, folder: Path) -> None:
    logs = Path(made.temp_dir) / "session_latest" / "logs"
    kept = folder / "logs" / "ray"
    if made.temp_dir and logs.is_dir():
        _clear(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(logs.resolve(), kept, symlinks=True)
    if made.temp_dir:
        shutil.rmtree(made.temp_dir, ignore_errors=True)


def _clear(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
