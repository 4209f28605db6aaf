"""What `up` started, so that `down` stops that and nothing else: `cluster.json` in the state folder.

Written before what it names is waited for: an `up` that is killed half-way leaves nothing that `down` does not know.
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
from swiftclaw.cli.local.processes import StartedProcess

FORMAT = 1
FILE = "cluster.json"


@dataclass(frozen=True)
class RecordedNode:
    """A `ray start --block` of ours; the first one is the head."""

    region: str
    process: StartedProcess


@dataclass
class ClusterRecord:
    """A Ray cluster that was started, or one that was joined (then without nodes)."""

    address: str
    started_ray: bool
    started_serve: bool = True
    temp_dir: str = ""  # Ray's, made for this cluster
    auth_mode: str = ""  # Ray's RAY_AUTH_MODE there: token or disabled; empty: not for us to say
    dashboard: str = ""  # Ray's, host:port
    nodes: list[RecordedNode] = field(default_factory=list)


def load(folder: Path) -> ClusterRecord | None:
    """Raises CommandFailed when the file is there but cannot be understood: guessing would stop the wrong thing."""
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
        raise CommandFailed(f"{file} is damaged; stop the Ray processes it was made for yourself, then delete it") from None


def save(folder: Path, record: ClusterRecord) -> None:
    write_private(folder / FILE, json.dumps({"format": FORMAT, **asdict(record)}, indent=1))


def remove(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time per state folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "cli.lock").open("w")
    except OSError as error:
        raise CommandFailed(f"the state folder {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(f"another `swiftclaw up` or `down` is at work in {folder}") from None
        yield
