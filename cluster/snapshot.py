"""Everything a gateway receives, built in one place: settings, instances, traffic shares, rate rules, breakers and peers.

A snapshot is complete and replaces the previous one; gateways keep working from their last snapshot while the Controller is
away. When a gateway receives one is for cluster/fleet/gateways.py to decide; what operators see is cluster/view.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.config import AgentSettings, Settings
from cluster.desired.autoscaling import bounds
from cluster.fleet.registry import InstanceRecord
from cluster.instance_state import STARTING
from cluster.messages import AgentView, Member, Registration, Snapshot, VersionShare
from cluster.view import ClusterView
from policies.rate_limit import RateRule


class SnapshotBuilder:
    """Builds snapshots from the view, and remembers the rate rules of agents without any instance."""

    def __init__(self, view: ClusterView, key: str) -> None:
        """`key`: the secret by which instances recognize gateways."""
        self._view, self._key = view, key
        self._rules: dict[str, tuple[RateRule, ...]] = {}  # by agent
        self.remember_rules()

    def remember_rules(self) -> None:
        """To be called after every change of the registry: an agent's rules stay in force until its instances are replaced."""
        by_agent: dict[str, list[Registration]] = {}
        for record in self._view.registry:
            by_agent.setdefault(record.registration.agent, []).append(record.registration)
        self._rules.update({agent: newest_rules(registrations) for agent, registrations in by_agent.items()})

    def rules_of(self, agent: str) -> tuple[RateRule, ...]:
        return self._rules.get(agent, ())

    def build(self, session_keys: tuple[str, ...], now: float) -> Snapshot:
        """The snapshot as of `now` (monotonic seconds)."""
        view, settings = self._view, self._view.settings
        shares = view.rollouts.shares()
        return Snapshot(
            version=view.gateways.version,
            key=self._key,
            http=settings.http,
            agents={name: self._agent(agent, settings, shares.get(name)) for name, agent in settings.agents.items()},
            session_keys=session_keys,
            client_regions=settings.client_regions,
            trusted_proxies=settings.trusted_proxies,
            distances_ms=settings.distances_ms,
            circuits=view.breakers.reports(now),
            peers=view.gateways.peers(),
            desired=view.rollouts.to_keep(),
        )

    def _is_coming(self, agent: AgentSettings) -> bool:
        """Whether an agent without a healthy instance will have one: it is starting, or a waiting request makes it start."""
        records = [record for record in self._view.registry.of(agent.name) if not record.draining]
        if any(record.state == STARTING for record in records):
            return True
        if any(app.startswith(f"{agent.name}.") for app in self._view.placement.problems):
            return False
        count = wanted(agent)
        records_or_loops = len(records) + len(self._view.crash_loops_of(agent.name))  # a crash loop may take minutes
        can_scale = agent.scaling is not None and any(bounds(agent, region)[1] != 0 for region in agent.regions)
        return count > records_or_loops or (count == 0 and can_scale)

    def _agent(self, agent: AgentSettings, settings: Settings, share: VersionShare | None) -> AgentView:
        return AgentView(
            settings=agent,
            session_affinity=self._view.keeps_sessions(agent),
            members=tuple(_member(record, settings) for record in self._view.registry.of(agent.name)),
            versions=share,
            rate_rules=self.rules_of(agent.name),
            may_be_none=all(not _least(agent, region) for region in agent.regions),
            coming=self._is_coming(agent),
        )


def wanted(agent: AgentSettings) -> int:
    """How many instances should run, in all regions."""
    return sum(region.instances for region in agent.regions.values())


def _least(agent: AgentSettings, region: str) -> int:
    return bounds(agent, region)[0] if agent.scaling is not None else agent.regions[region].instances


def newest_rules(registrations: Iterable[Registration]) -> tuple[RateRule, ...]:
    """The rules of the newest version: the one whose first instance started last. Raises ValueError without registrations."""
    started: dict[str, float] = {}
    rules: dict[str, tuple[RateRule, ...]] = {}
    for one in registrations:
        started[one.version] = min(one.started_at, started.get(one.version, one.started_at))
        rules[one.version] = one.rate_rules
    return rules[max(started, key=lambda version: started[version])]


def _member(record: InstanceRecord, settings: Settings) -> Member:
    registration = record.registration
    region = settings.agents[registration.agent].regions.get(registration.region)
    return Member(
        id=record.id,
        replica=registration.replica,
        host=registration.host,
        port=registration.port,
        version=registration.version,
        region=registration.region,
        priority=region.priority if region else 1,
        state=record.state,
        started_at=registration.started_at,
    )
