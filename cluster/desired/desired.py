"""What should run now? The file's settings, with each agent's versions and instance counts put in.

A change is in the state file before it takes effect (`commit`), so the process may end between any two lines, and a command
whose change cannot be saved is refused. What the file would only repeat, such as the apps and instances that run, is
saved as soon as the folder can be written (`save`). How versions change:
cluster/desired/rollout_manager.py. How counts change: cluster/desired/autoscaling.py. What does run:
cluster/placement/reconciler.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from cluster.config import Settings
from cluster.desired.autoscaling import ScalingChange, with_counts
from cluster.desired.packages import Packages
from cluster.desired.rollout_manager import RolloutManager
from cluster.desired.rollout_transitions import RolloutRejected
from cluster.desired.state import AppliedConfig, State, StateNotSaved, Store
from cluster.telemetry.events import Events

log = logging.getLogger("swiftclaw.controller")


class DesiredState:
    """`file`: the settings with the current versions; `settings`: with the current counts as well, which are in force."""

    file: Settings
    settings: Settings

    def __init__(self, state: State, store: Store, packages: Packages, events: Events, at: Callable[[str], None]) -> None:
        self.state, self._store, self._events = state, store, events
        self.versions = RolloutManager(state, packages, self.commit, self._record_rollout, at)
        self.unsaved = ""  # why the state file is older than the state
        self.lost = not state.started_with  # no state file, or another cluster's; until the last `rebuild`
        self._rebuilt_from: Mapping[str, Any] | None = None
        self._started_config = AppliedConfig()  # before `rebuild`

    def start_with(self, args: Mapping[str, Any], folder: str) -> None:
        """The args replace the saved ones when they differ from those of the last start."""
        digest = AppliedConfig(args, folder).digest
        if self.state.started_with != digest:
            try:
                self.versions.apply_file(args, folder, must_save=False)  # Serve keeps the args of the app as well
            except RolloutRejected as error:
                log.error("the settings from cluster.yaml were not applied: %s", error)
            self.state.started_with = digest
        self._started_config = self.state.config
        self.save()
        self.read()

    def apply_file(self, args: Mapping[str, Any], folder: str) -> None:
        """Apply cluster.yaml. Raises ConfigError, RolloutRejected, StateNotSaved."""
        self.file = self.versions.apply_file(args, folder)
        self.settings = with_counts(self.file, self.state.counts)

    def read(self) -> None:
        """Recompute the settings after a change of versions."""
        self.file = self.versions.settings()
        self.settings = with_counts(self.file, self.state.counts)

    def scaled(self, changes: Iterable[ScalingChange]) -> None:
        """Recompute the settings after a change of counts."""
        self.settings = with_counts(self.file, self.state.counts)
        self.save()
        for change in changes:
            log.info("%s", change)
            self._events.add(
                "scale", str(change), agent=change.agent, version=change.version, region=change.region,
                before=change.before, after=change.after, reason=change.reason,
            )  # fmt: skip

    def rebuild(self, kept: Mapping[str, Any] | None, *, last: bool) -> bool:
        """If the state was lost, restore what gateways `kept` of their newest snapshot. Whether something was restored.

        Done again when a gateway with a newer one connects, until the `last` time.
        """
        if not self.lost:
            return False
        self.lost = not last
        if kept is None or kept == self._rebuilt_from:
            return False
        self._rebuilt_from = kept
        self.versions.restore(kept, self.state.started_with, self._started_config)
        return True

    def forget_all(self) -> None:
        """Everything will stop; the next start uses the args of its file."""
        self.versions.forget_all()
        self.state.started_with = ""
        self.state.counts.clear()

    def commit(self, must_save: bool = True, **changes: Any) -> None:
        """Save the state with these fields changed, then change them. Raises StateNotSaved, then nothing has changed.

        Without `must_save` they change in any case and are saved as soon as possible.
        """
        if must_save:
            try:
                self._store.save(replace(self.state, **changes))
            except StateNotSaved as error:
                self.unsaved = _reason(error)
                raise
            self.unsaved = ""
        for name, value in changes.items():
            setattr(self.state, name, value)
        if not must_save:
            self.save()

    def save(self) -> None:
        """Save the state, or leave the reason in `unsaved`; the next round tries again."""
        try:
            self._store.save(self.state, again=bool(self.unsaved))
            self.unsaved = ""
        except StateNotSaved as error:
            reason = _reason(error)
            if not self.unsaved:
                log.error("the desired state was not saved: %s", reason)
            self.unsaved = reason

    def warnings(self) -> list[str]:
        """For operators."""
        return [f"{self.unsaved}: commands that change settings are rejected until it is writable"] if self.unsaved else []

    def _record_rollout(self, agent: str, version: str, message: str) -> None:
        log.info("%s", message)
        self._events.add("rollout", message, agent=agent, version=version)


def _reason(error: StateNotSaved) -> str:
    return str(error).partition(": ")[0]
