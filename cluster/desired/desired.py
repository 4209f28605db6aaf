"""What should run now? What the file says, with each agent's versions and numbers of instances put in.

It is in the state file before anybody acts on it, so that the process may end between any two lines. How versions change:
cluster/desired/rollout_manager.py; how counts change: cluster/desired/autoscaling.py; what does run is for
cluster/placement/reconciler.py to find out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cluster.config import Settings
from cluster.desired.autoscaling import ScalingChange, with_counts
from cluster.desired.packages import Packages
from cluster.desired.rollout import RolloutRejected
from cluster.desired.rollout_manager import RolloutManager
from cluster.desired.state import AppliedConfig, State, Store
from cluster.telemetry.events import Events

log = logging.getLogger("swiftclaw.controller")


class DesiredState:
    """`file`: with the versions of now; `settings`: with the counts of now as well, which is what holds."""

    file: Settings
    settings: Settings

    def __init__(self, state: State, store: Store, packages: Packages, events: Events, at: Callable[[str], None]) -> None:
        self.state, self._store, self._events = state, store, events
        self.versions = RolloutManager(state, packages, self.save, self._tell_of_rollout, at)
        self.lost = not state.started_with  # no state, or that of another cluster; until the last `rebuild`
        self._told: Mapping[str, Any] | None = None
        self._started_config = AppliedConfig()  # before `rebuild`

    def start_with(self, args: Mapping[str, Any], folder: str) -> None:
        """The args win over the remembered ones when they are not those of last time."""
        digest = AppliedConfig(args, folder).digest
        if self.state.started_with != digest:
            try:
                self.versions.apply_file(args, folder)
            except RolloutRejected as error:
                log.error("the settings were not applied: %s", error)
            self.state.started_with = digest
        self._started_config = self.state.config
        self.save()
        self.read()

    def apply_file(self, args: Mapping[str, Any], folder: str) -> None:
        """The file was applied; to be followed by `save`. Raises ConfigError, RolloutRejected."""
        self.file = self.versions.apply_file(args, folder)
        self.settings = with_counts(self.file, self.state.counts)

    def read(self) -> None:
        """The versions have changed."""
        self.file = self.versions.settings()
        self.settings = with_counts(self.file, self.state.counts)

    def scaled(self, changes: Iterable[ScalingChange]) -> None:
        """The counts have changed: remembered before anything acts on it."""
        self.settings = with_counts(self.file, self.state.counts)
        self.save()
        for change in changes:
            log.info("%s", change)
            self._events.add(
                "scale", str(change), agent=change.agent, version=change.version, region=change.region,
                before=change.before, after=change.after, reason=change.reason,
            )  # fmt: skip

    def rebuild(self, told: Mapping[str, Any] | None, *, last: bool) -> bool:
        """If the state was lost: what gateways were `told` last is what was desired. Whether it was taken back.

        Again whenever a gateway comes that knows something newer, until the `last` time.
        """
        if not self.lost:
            return False
        self.lost = not last
        if told is None or told == self._told:
            return False
        self._told = told
        self.versions.restore(told, self.state.started_with, self._started_config)
        return True

    def forget_all(self) -> None:
        """All is to stop; started again, the args win."""
        self.versions.forget_all()
        self.state.started_with = ""
        self.state.counts.clear()

    def save(self) -> None:
        """Raises OSError: nothing is done that is not remembered."""
        self._store.save(self.state)

    def _tell_of_rollout(self, agent: str, version: str, message: str) -> None:
        log.info("%s", message)
        self._events.add("rollout", message, agent=agent, version=version)
