"""The read side of the Controller: the parts of the cluster that the admin port, the metrics and the history may read.

The Controller builds one `ClusterView`; readers take it instead of the Controller, so that they can neither change what runs
nor depend on how it is reconciled. Not for gateways: what they receive is cluster/snapshot.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.config import AgentSettings, Settings
from cluster.desired.apps import AppStatus
from cluster.desired.autoscaling import Autoscaling
from cluster.desired.canary_analysis import CanaryAnalysis
from cluster.desired.desired import DesiredState
from cluster.desired.rollout_manager import RolloutManager
from cluster.desired.rollout_transitions import instances_for
from cluster.fleet.crash_loops import CrashLoops, CrashSlot
from cluster.fleet.gateways import Gateways
from cluster.fleet.registry import Registry
from cluster.fleet.shared_breakers import SharedBreakers
from cluster.telemetry.events import Events
from cluster.telemetry.history import MetricHistory
from cluster.telemetry.tally import Key
from cluster.telemetry.totals import MetricTotals


@dataclass(frozen=True)
class InstanceRow:
    """The state of one registered instance."""

    key: Key
    state: str
    cpu_percent: float | None = None
    circuit: str | None = None  # None: no breaker


class PlacementStatus(Protocol):
    """The result of the last reconciliation round."""

    @property
    def observed(self) -> Mapping[str, AppStatus]:
        """Status by Serve app."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Serve app -> why it cannot start."""

    @property
    def warnings(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class ClusterView:
    """References to the live parts; every read returns their state at that moment."""

    desired: DesiredState
    registry: Registry
    gateways: Gateways
    breakers: SharedBreakers
    rollouts: RolloutManager
    analysis: CanaryAnalysis
    autoscaling: Autoscaling
    placement: PlacementStatus
    totals: MetricTotals
    history: MetricHistory
    events: Events
    crash_loops: CrashLoops

    @property
    def settings(self) -> Settings:
        """The settings in force: those of the file, with the current versions and instance counts."""
        return self.desired.settings

    def instances(self) -> Iterator[InstanceRow]:
        """Every registered instance."""
        now = time.monotonic()
        for record in self.registry:
            circuit = self.breakers.state(record.registration.replica, now)
            yield InstanceRow(record.key, record.state, record.cpu_percent, circuit)

    def crash_loops_of(self, agent: str) -> list[CrashSlot]:
        """The agent's instances that crashed repeatedly and do not run now."""
        return [slot for slot in self.crash_loops.loops() if slot.agent == agent]

    def keeps_sessions(self, agent: AgentSettings) -> bool:
        """Whether session affinity is on: as the file sets it, else as the agent's code does."""
        enabled = agent.load_balancing.session_affinity.enabled
        if enabled is not None:
            return enabled
        return any(record.registration.session_affinity for record in self.registry.of(agent.name))

    def weights(self) -> Iterator[tuple[str, str, float]]:
        """(agent, version, percent of the traffic) of every version with a share."""
        for agent, share in self.rollouts.shares().items():
            yield agent, share.stable, 100 - share.percent
            if share.canary:
                yield agent, share.canary, share.percent

    def desired_instances(self) -> Iterator[tuple[str, str, str, int]]:
        """(agent, version, region, instances that should run)."""
        for agent, deployed in self.rollouts.deployed(self.settings).items():
            for one in deployed:
                for region, wanted in self.settings.agents[agent].regions.items():
                    yield agent, one.settings.version, region, instances_for(one.percent, wanted.instances)
