"""The record of what `up` started, so that `down` stops exactly that: `cluster.json` in the state folder.

A process is recorded before `up` waits for it, so an `up` that is killed half-way leaves nothing that `down` misses.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.desired.state import write_private
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster.processes import StartedProcess

FORMAT = 1
FILE = "cluster.json"


@dataclass(frozen=True)
class RecordedNode:
    """A `ray start --block` process that `up` started; the first one is the head."""

    region: str
    process: StartedProcess


@dataclass
class ClusterRecord:
    """A Ray cluster that `up` started, or one that it joined (then without nodes)."""

    address: str
    started_ray: bool
    started_serve: bool = True
    temp_dir: str = ""  # Ray's, made for this cluster
    auth_mode: str = ""  # RAY_AUTH_MODE for this cluster: token or disabled; "": leave it to the environment
    dashboard: str = ""  # Ray's dashboard, host:port
    nodes: list[RecordedNode] = field(default_factory=list)


def load(folder: Path) -> ClusterRecord | None:
    """None without a record. Raises CommandFailed for a damaged one: guessing could stop the wrong processes."""
    file = folder / FILE
    try:
        content = json.loads(file.read_text("utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        nodes = [RecordedNode(node["region"], StartedProcess(**node["process"])) for node in content.pop("nodes")]
        return ClusterRecord(**content, nodes=nodes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CommandFailed(f"{file} is damaged; stop SwiftClaw's Ray processes by hand, then delete the file") from None


def save(folder: Path, record: ClusterRecord) -> None:
    """Raises CommandFailed."""
    try:
        write_private(folder / FILE, json.dumps({"format": FORMAT, **asdict(record)}, indent=1))
    except OSError as error:
        raise CommandFailed(f"the state folder {folder} cannot be written ({error.strerror}): nothing was changed") from None


def remove(folder: Path) -> str:
    """Returns why the record could not be removed, as a sentence; "" when it is gone. The next `up` finds it outdated."""
    try:
        (folder / FILE).unlink(missing_ok=True)
    except OSError as error:
        return f"the record {folder / FILE} could not be removed ({error.strerror}); the next `swiftclaw up` ignores it"
    return ""


@contextlib.contextmanager
def locked(folder: Path, *, writable: bool = True) -> Iterator[None]:
    """Allow one `up` or `down` at a time per state folder. Raises CommandFailed when another one is running.

    With `writable`, also when nothing can be written there; without it, a lock file that exists is enough, and none at all is
    no obstacle: `down` must be possible whatever has happened to the folder.
    """
    file = folder / "cli.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = file.open("w" if writable or not file.exists() else "r")
    except OSError as error:
        if writable:
            raise CommandFailed(f"the state folder {folder} is not writable: {error.strerror}; nothing was changed") from None
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(f"another `swiftclaw up` or `down` is using {folder}; wait until it has finished") from None
        yield
