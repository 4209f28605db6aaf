"""What must outlive the Controller's process: the desired state, the names of instances, the cluster's secret.

Written whole to a temporary file and renamed, so that a crash leaves either the old state or the new one, and always before
a change is acted on. The folder is `stateDir` of cluster.yaml.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.desired.bounded_write import BoundedWrites
from cluster.desired.rollout_transitions import Rollout, dump, restored

log = logging.getLogger("swiftclaw.state")
FORMAT = 1


class StateNotSaved(OSError):
    """The state folder cannot be written; the text says which and why. Nothing has changed."""


@dataclass(frozen=True)
class AppliedConfig:
    """The args of cluster.yaml as they were applied last, and the folder that relative paths and imports in them refer to.

    Plain JSON: what `Settings.to_args` returns.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""

    @property
    def agents(self) -> Mapping[str, Mapping[str, Any]]:
        """Agent -> its block."""
        return self.args.get("agents") or {}

    def with_agent(self, name: str, block: Mapping[str, Any]) -> AppliedConfig:
        return replace(self, args={**self.args, "agents": {**self.agents, name: block}})

    def without_agents(self) -> AppliedConfig:
        return replace(self, args={**self.args, "agents": {}})

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.args, self.folder], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class AppRecord:
    """What a Serve app was started with."""

    identity: str = ""  # `AppSpec.identity`; "": not started completely, the next round starts it again
    replicas: int = 0
    agent: str = ""  # "": a gateway's app
    version: str = ""
    package: str = ""

    def unfinished(self) -> AppRecord:
        return replace(self, identity="")


@dataclass(frozen=True)
class InstanceCount:
    """How many instances a region has in place of the number in the file."""

    instances: int
    file: int  # the number in the file when this one was set; another number there ends this one
    reason: str = ""
    at: float = 0.0  # seconds since the epoch


Counts = dict[str, dict[str, InstanceCount]]  # agent -> region -> count


@dataclass
class State:
    """The desired state, and what was started for it. `to_json` and `from_json` keep the names of format 1."""

    ray_cluster: str = ""  # another cluster's instances mean nothing here
    started_with: str = ""  # digest of the args the Serve app was started with: on a restart, other args win
    config: AppliedConfig = field(default_factory=AppliedConfig)
    apps: dict[str, AppRecord] = field(default_factory=dict)  # by name of the Serve app
    instances: list[dict[str, Any]] = field(default_factory=list)  # `Registry.dump`
    counts: Counts = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)  # by agent

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "ray_cluster": self.ray_cluster,
            "started_with": self.started_with,
            "args": self.config.args,
            "folder": self.config.folder,
            "apps": {name: vars(app) for name, app in self.apps.items()},
            "instances": self.instances,
            "counts": {
                agent: {region: vars(count) for region, count in regions.items()} for agent, regions in self.counts.items()
            },
            "rollouts": {agent: dump(rollout) for agent, rollout in self.rollouts.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> State:
        """Raises ValueError, TypeError, KeyError or AttributeError when the content is not a state of format 1."""
        fields = dict(content)
        if fields.pop("format") != FORMAT:
            raise ValueError("unknown format")
        config = AppliedConfig(fields.pop("args", {}), fields.pop("folder", ""))
        apps = {name: AppRecord(**app) for name, app in fields.pop("apps", {}).items()}
        counts = {
            agent: {region: InstanceCount(**count) for region, count in regions.items()}
            for agent, regions in fields.pop("counts", {}).items()
        }
        rollouts = {agent: restored(rollout) for agent, rollout in fields.pop("rollouts", {}).items()}
        return cls(config=config, apps=apps, counts=counts, rollouts=rollouts, **fields)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises StateNotSaved for an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise StateNotSaved(
            f"the state folder {folder} cannot be written ({error.strerror or error}): nothing was changed; "
            "free space or make the folder writable, then repeat the command"
        ) from error


class Store:
    """The files of the folder. Writing raises StateNotSaved: nothing may be done that is not saved."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "state.json"
        self._saved = ""
        self._write_state = BoundedWrites(self._file, write_private)
        self._write_keys = BoundedWrites(folder / "session-keys", write_private)
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> State | None:
        """The last saved state; None when there is none. A damaged file is moved aside and counts as none."""
        try:
            return State.from_json(json.loads(self._file.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            aside = self._file.with_suffix(".damaged")
            self._file.replace(aside)
            log.error("%s is damaged (%s); moved it to %s, restoring the state from the running apps", self._file, error, aside)
            return None

    def save(self, state: State, *, again: bool = False) -> None:
        """Write the state if it has changed; with `again` in any case, to learn whether the folder can be written by now."""
        content = json.dumps(state.to_json(), indent=1)
        if again or content != self._saved:
            with writing(self._folder):
                self._write_state(content)
            self._saved = content

    def key(self) -> str:
        """The secret that proves a gateway to instances; made once per folder, readable by its owner only."""
        file = self._folder / "key"
        try:
            return file.read_text("ascii").strip()
        except FileNotFoundError:
            write_private(file, secrets.token_hex(32))
            return file.read_text("ascii").strip()

    def session_keys(self) -> tuple[str, ...]:
        """The keys of session tokens: the first signs, all verify. Readable by their owner only."""
        file = self._folder / "session-keys"
        try:
            return tuple(file.read_text("ascii").split())
        except FileNotFoundError:
            return self.rotate_session_key(())

    def rotate_session_key(self, old: tuple[str, ...]) -> tuple[str, ...]:
        """Put a new key in front; only the previous one is still accepted."""
        keys = (secrets.token_hex(32), *old[:1])
        with writing(self._folder):
            self._write_keys("\n".join(keys) + "\n")
        return keys


def write_private(file: Path, content: str | bytes, go_on: Callable[[], bool] = lambda: True) -> None:
    """Write atomically, with mode 0600; on disk when it returns. After an error the old file is whole and nothing is left.

    `go_on` is asked when all is written, before the new file replaces the old one.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        if go_on():
            beside.replace(file)
        else:
            beside.unlink()
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
