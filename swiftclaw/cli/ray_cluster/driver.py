"""A Ray driver for the length of one command. What was deployed keeps running when it disconnects.

Ray is imported inside functions only: it takes a second to import, and reads RAY_AUTH_MODE while it is imported.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed, first_line
from swiftclaw.cli.ray_cluster import cluster_record, processes
from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord

NAMESPACE = "swiftclaw"
REACHABLE_S = 3.0
DISCONNECT_S = 10.0
LEAVING = "leaving the Ray cluster"


def auth_mode() -> str:
    """RAY_AUTH_MODE for a cluster that is started or found here: `token` if the user has a token, else `disabled`.

    That is Ray's own rule for a head node. Ray does not apply it to a node that joins, nor to an explicit address, so the
    commands settle it for all of them.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None:
        return mode
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "token" if token or (Path.home() / ".ray" / "auth_token").is_file() else "disabled"


def is_reachable(address: str) -> bool:
    """Whether a process listens there. Ray itself would retry for a long time."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE_S):
            return True
    except (OSError, ValueError):
        return False


def is_local(address: str) -> bool:
    """Whether the address belongs to this machine."""
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            return True
    except OSError:
        return False


@contextlib.contextmanager
def connected(address: str, auth_mode: str = "") -> Iterator[None]:
    """A driver on the cluster at `address`, without Ray's log output. Raises CommandFailed when it cannot be joined."""
    if "://" not in address and not is_reachable(address):
        raise CommandFailed(f"no Ray cluster is reachable at {address}; check the address, and that the cluster is running")
    os.environ["RAY_ADDRESS"] = address  # it would win over the argument
    if auth_mode:
        os.environ["RAY_AUTH_MODE"] = auth_mode  # before Ray is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # or a thread of Serve's handles joins again while the driver disconnects
    import ray
    from ray import serve  # noqa: F401  (configures its loggers, which are silenced below)

    # asyncio: a task of Serve's handles that ends after the driver has disconnected would be reported with a traceback.
    for name in ("ray", "ray.serve", "ray.data", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise CommandFailed(f"cannot join the Ray cluster at {address}: {first_line(error)}") from None
    for number, handler in handlers.items():  # Ray's handlers would abort where ours clean up first
        signal.signal(number, handler)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Ray prints reports on its actors there
            yield
    finally:
        disconnect(ray.shutdown)


def disconnect(leave: Callable[[], object], seconds: float = DISCONNECT_S) -> None:
    """Leave the cluster. Ray waits for a node that does not answer, however long: the command does not (`is_leaving`)."""
    thread = threading.Thread(target=leave, name=LEAVING, daemon=True)
    thread.start()
    thread.join(seconds)


def is_leaving() -> bool:
    """Whether `disconnect` gave up waiting: then Ray would also hold up the end of this process."""
    return any(thread.name == LEAVING for thread in threading.enumerate())


@contextlib.contextmanager
def connected_to(file: Path, address: str | None = None) -> Iterator[None]:
    """A driver on the cluster that SwiftClaw runs on, however it was started (`locate`). Raises CommandFailed."""
    record = locate(file, address)
    with connected(record.address, record.auth_mode):
        yield


def locate(file: Path, address: str | None = None) -> ClusterRecord:
    """The Ray cluster of a command: the given one, the one that `up` recorded for this cluster.yaml if it still runs, the
    one that RAY_ADDRESS names, or the only one on this machine. Raises CommandFailed."""
    record = cluster_record.load(files.state_dir(file)) if address in (None, "auto") else None
    if address in (None, "auto"):
        if record is not None and ("://" in record.address or is_reachable(record.address)):
            return record
        address = named_by_environment()
    if address not in (None, "auto"):
        return ClusterRecord(str(address), started_ray=False, started_serve=False, auth_mode=auth_mode())
    found = on_this_machine()
    if found is None and record is not None:
        return record  # joining it fails with its address
    if found is None:
        raise CommandFailed(
            "no Ray cluster is running on this machine; start SwiftClaw with `swiftclaw up`, or name the cluster with "
            "--address HOST:PORT or RAY_ADDRESS"
        )
    return ClusterRecord(found, started_ray=False, started_serve=False, auth_mode=auth_mode())


def gcs_address() -> str:
    """The address of the connected cluster, as its nodes name it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def named_by_environment() -> str | None:
    """RAY_ADDRESS, if it names a cluster: `local` and `auto` are instructions to start or to find one."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "auto", "local") else address


def wants_own_cluster() -> bool:
    """RAY_ADDRESS=local asks for a cluster of one's own: what others run here is none of this command's business."""
    return os.environ.get("RAY_ADDRESS") == "local"


def on_this_machine() -> str | None:
    """The address of the Ray cluster that runs here. Raises CommandFailed when there are several."""
    running = processes.ray_addresses()
    if len(running) > 1:
        raise CommandFailed(
            f"several Ray clusters are running on this machine ({', '.join(running)}); choose one with --address"
        )
    return running[0] if running else None
