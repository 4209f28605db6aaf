"""What must outlive the Controller's process: the desired state, the names of instances, the cluster's secret.

Written whole to a temporary file and renamed, so that a crash leaves either the old state or the new one; written before
it is acted on. The folder is the file's `stateDir`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger("swiftclaw.state")
FORMAT = 1


@dataclass
class State:
    """`args` is what should run (the args of cluster.yaml), `apps` what was started for it."""

    ray_cluster: str = ""  # another cluster's instances mean nothing here
    started_with: str = ""  # digest of the args the Serve app was started with: others on a restart win
    args: dict[str, Any] = field(default_factory=dict)
    folder: str = ""  # what relative paths and imports in `args` are relative to
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)  # Serve app -> what it was started with
    instances: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # see cluster/desired/autoscaling.py
    rollouts: dict[str, dict[str, Any]] = field(default_factory=dict)  # agent -> its versions (cluster/desired/rollout.py)


class Store:
    """The folder. Raises OSError when it cannot be written: nothing is done that is not remembered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "state.json"
        self._saved = ""
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> State | None:
        """The last saved state; None when there is none. A damaged file is kept aside and counts as none."""
        try:
            content = json.loads(self._file.read_text("utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            return State(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            aside = self._file.with_suffix(".damaged")
            self._file.replace(aside)
            log.error("%s is damaged (%s); kept as %s, starting from what runs", self._file, error, aside)
            return None

    def save(self, state: State) -> None:
        content = json.dumps({"format": FORMAT, **vars(state)}, indent=1)
        if content != self._saved:
            write_private(self._file, content)
            self._saved = content

    def key(self) -> str:
        """The secret that gateways show to instances; made once per folder, readable by the owner only."""
        file = self._folder / "key"
        try:
            return file.read_text("ascii").strip()
        except FileNotFoundError:
            write_private(file, secrets.token_hex(32))
            return file.read_text("ascii").strip()

    def session_keys(self) -> tuple[str, ...]:
        """What session tokens are signed with: the newest first, older ones still verify. Readable by the owner only."""
        file = self._folder / "session-keys"
        try:
            return tuple(file.read_text("ascii").split())
        except FileNotFoundError:
            return self.rotate_session_key(())

    def rotate_session_key(self, old: tuple[str, ...]) -> tuple[str, ...]:
        """A new key in front; the one before it is the last that is still accepted."""
        keys = (secrets.token_hex(32), *old[:1])
        write_private(self._folder / "session-keys", "\n".join(keys) + "\n")
        return keys


def write_private(file: Path, content: str | bytes) -> None:
    """Atomically, mode 0600, on disk before it returns."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content.encode() if isinstance(content, str) else content)
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(file)
