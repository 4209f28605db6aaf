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
from collections.abc import Iterator
from pathlib import Path

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed, first_line
from swiftclaw.cli.program import program
from swiftclaw.cli.ray_cluster import cluster_record

NAMESPACE = "swiftclaw"
REACHABLE_S = 3.0


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
    import ray
    from ray import serve  # noqa: F401  (configures its loggers, which are silenced below)

    for name in ("ray", "ray.serve", "ray.data"):
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
        ray.shutdown()


@contextlib.contextmanager
def connected_to(file: Path) -> Iterator[None]:
    """A driver on the cluster that `up` started or joined for this cluster.yaml. Raises CommandFailed."""
    record = recorded(file)
    with connected(record.address, record.auth_mode):
        yield


def recorded(file: Path) -> cluster_record.ClusterRecord:
    """What `up` recorded for this cluster.yaml. Raises CommandFailed when it recorded nothing."""
    record = cluster_record.load(files.state_dir(file))
    if record is None:
        raise CommandFailed(f"SwiftClaw was not started from {file.absolute().parent}; run `{program()} up` there first")
    return record
