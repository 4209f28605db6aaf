"""How many instances each region has now: what the policy says, or what an operator set; remembered in the state.

Serve only obeys: its apps are started with `external_scaler_enabled=True` and told a count (`serve_internals.scale`).
Serve's own autoscaling is not used, because other bounds would mean another deploy, which restarts instances, and because
it counts calls of handles, through which our requests do not go. Whom a smaller count stops is Serve's choice (not running
first, then nodes with the fewest replicas, then the newest); 2.60 has no public way to name the victims. They drain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.config import AgentSettings, Scaling, Settings
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import Observation
from policies.scaling import History, Metric, desired, mean_of

FRESH_S = 5.0  # what a gateway said of waiting and refused requests holds this long
CPU, CONNECTIONS = "CPU percent", "requests in flight"
OPERATOR = "set by an operator"

# agent -> region -> {instances, file, reason, at}. `file`: what the file said then; another word there ends the entry.
Counts = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class ScalingChange:
    agent: str
    version: str
    region: str
    before: int
    after: int
    reason: str

    def __str__(self) -> str:
        return f"{self.agent} in {self.region}: {self.before} -> {self.after} instances ({self.reason})"


def bounds(agent: AgentSettings, region: str) -> tuple[int, int | None]:
    """The fewest and the most that the region may have; its own bounds win over those of `scaling`."""
    own, scaling = agent.regions[region], agent.scaling
    least = own.min_instances if own.min_instances is not None else scaling.min_instances if scaling else 0
    most = own.max_instances if own.max_instances is not None else scaling.max_instances if scaling else None
    return least, most


def count_of(agent: AgentSettings, region: str, counts: Counts) -> int:
    """What should run: the remembered count while the file still says what it said then, else the file's."""
    said = agent.regions[region].instances
    entry = counts.get(agent.name, {}).get(region)
    count = int(entry["instances"]) if entry and entry["file"] == said else said
    if agent.scaling is None:
        return count
    least, most = bounds(agent, region)
    return max(least, count if most is None else min(most, count))


def counted(agent: AgentSettings, counts: Counts) -> AgentSettings:
    """The agent with the number of instances that each region should have now, whichever version these settings are of."""
    regions = {name: replace(region, instances=count_of(agent, name, counts)) for name, region in agent.regions.items()}
    return replace(agent, regions=regions)


def with_counts(settings: Settings, counts: Counts) -> Settings:
    return replace(settings, agents={name: counted(agent, counts) for name, agent in settings.agents.items()})


class Autoscaling:
    """Writes into `counts`, which is part of the Controller's state. `settings` are always the file's own."""

    def __init__(self, registry: Registry, counts: Counts) -> None:
        self._registry, self._counts = registry, counts
        self._histories: dict[tuple[str, str], History] = {}
        self._queued: dict[str, tuple[float, Mapping[str, int]]] = {}  # by gateway: when, and how many by agent
        self._refused: dict[str, float] = {}  # by agent: when a request last found no instance

    def heard(self, seen: Observation, now: float) -> None:
        """What waits at a gateway, and whom it had to refuse."""
        self._queued[seen.gateway] = (now, seen.queued)
        for agent, status in seen.refusals:
            if status == 503:
                self._refused[agent] = now

    def look(self, settings: Settings, now: float, wall: float) -> list[ScalingChange]:
        """To be called once a second. `wall`: seconds since the epoch."""
        self._forget(settings, now, wall)
        seen = [
            self._look_at(agent, agent.scaling, region, now, wall)
            for agent in settings.agents.values()
            if agent.scaling is not None
            for region in agent.regions
        ]
        return [change for change in seen if change is not None]

    def fix(self, settings: Settings, name: str, region: str | None, instances: int, wall: float) -> ScalingChange:
        """An operator's count. Raises ValueError with a sentence where it cannot be."""
        agent = settings.agents.get(name)
        if agent is None:
            raise ValueError(f"there is no agent {name!r} (known: {', '.join(settings.agents) or 'none'})")
        if region is None and len(agent.regions) == 1:
            region = next(iter(agent.regions))
        if region not in agent.regions:
            said = "name one with --region" if region is None else f"it does not run in {region!r}"
            raise ValueError(f"{name} runs in {', '.join(agent.regions)}: {said}")
        least, most = bounds(agent, region)
        if instances < least or (most is not None and instances > most):
            allowed = f"at least {least}" if most is None else f"{least} to {most}"
            raise ValueError(f"{name} may have {allowed} instances in {region}, not {instances}: minInstances, maxInstances")
        before = count_of(agent, region, self._counts)
        self._histories.pop((name, region), None)  # where it goes on from here is a new story
        return self._set(agent, region, before, instances, OPERATOR, wall)

    def last(self, agent: str, region: str) -> tuple[str, float | None]:
        """Why the count was last changed, and when (seconds since the epoch)."""
        entry = self._counts.get(agent, {}).get(region)
        return (entry["reason"], entry["at"]) if entry and entry["reason"] else ("", None)

    def least(self, agent: AgentSettings, region: str) -> int:
        """What `up` waits for: all that should run, unless autoscaling has found more useful than there may be room for."""
        count, entry = agent.regions[region].instances, self._counts.get(agent.name, {}).get(region)
        by_itself = agent.scaling is not None and entry is not None and entry["reason"] not in ("", OPERATOR)
        return min(count, bounds(agent, region)[0]) if by_itself else count

    def _look_at(self, agent: AgentSettings, scaling: Scaling, region: str, now: float, wall: float) -> ScalingChange | None:
        current = count_of(agent, region, self._counts)
        records = [record for record in self._registry.of(agent.name, None, region) if not record.draining]
        stable = [record for record in records if record.registration.version == agent.version]
        least, most = bounds(agent, region)
        if region not in self._counts.get(agent.name, {}):
            found = min(len(stable), len(stable) if most is None else most)
            if found > current:  # the state was lost: what runs is where it goes on
                return self._set(agent, region, current, found, "found running", wall)
            self._set(agent, region, current, current, "", wall)
        history = self._histories.setdefault((agent.name, region), History())
        history.downscale_delay_s = scaling.downscale_delay_s
        known = [record for record in records if _is_known(record)]
        count = sum(_is_known(record) for record in stable)
        waiting = self._waiting(agent.name, now)
        metrics = {}
        if not current:  # where nothing runs, whoever found no instance is the demand
            refused = now - self._refused.get(agent.name, -FRESH_S) < FRESH_S
            metrics[CONNECTIONS] = Metric(max(waiting, float(refused)), scaling.target_connections or 1.0)
        if scaling.target_cpu is not None and current:
            percent = sum(record.cpu_percent or 0.0 for record in known)
            metrics[CPU] = Metric(_mean(percent, count, current, scaling.target_cpu), scaling.target_cpu)
        if scaling.target_connections is not None and current:
            in_flight = waiting + sum(record.in_flight for record in known)
            metrics[CONNECTIONS] = Metric(
                _mean(in_flight, count, current, scaling.target_connections), scaling.target_connections
            )
        wanted = desired(current, metrics, least, scaling.max_instances if most is None else most, history, now)
        return self._set(agent, region, current, wanted, history.reason, wall) if wanted != current else None

    def _waiting(self, agent: str, now: float) -> float:
        """This region's part of what waits at all gateways: as many as the agent's other regions."""
        regions = max(1, len(self._counts.get(agent, {})))
        return sum(queued.get(agent, 0) for at, queued in self._queued.values() if now - at < FRESH_S) / regions

    def _set(self, agent: AgentSettings, region: str, before: int, after: int, reason: str, wall: float) -> ScalingChange:
        entry = {"instances": after, "file": agent.regions[region].instances, "reason": reason, "at": wall}
        self._counts.setdefault(agent.name, {})[region] = entry
        return ScalingChange(agent.name, agent.version, region, before, after, reason)

    def _forget(self, settings: Settings, now: float, wall: float) -> None:
        """What is no longer in the file, or what it now says otherwise."""
        for name in list(self._counts):
            agent = settings.agents.get(name)
            if agent is None:
                del self._counts[name]
                continue
            for region, entry in list(self._counts[name].items()):
                if region not in agent.regions or (agent.scaling is None and entry["reason"] != OPERATOR):
                    del self._counts[name][region]
            for region, entry in self._counts[name].items():
                if entry["file"] != agent.regions[region].instances:
                    count = count_of(agent, region, self._counts)
                    self._set(agent, region, count, count, "", wall)
                    self._histories.pop((name, region), None)
        for key in [key for key in self._histories if key[1] not in self._counts.get(key[0], {})]:
            del self._histories[key]
        self._queued = {gateway: said for gateway, said in self._queued.items() if now - said[0] < FRESH_S}


def _is_known(record: InstanceRecord) -> bool:
    """Nothing is known of one that takes no requests, or was not heard of since the Controller started."""
    return record.state == "healthy" and record.cpu_percent is not None


def _mean(total: float, known: int, current: int, target: float) -> float | None:
    """Per instance of the stable version that should run: `known` of them are among those that made `total`.

    What a canary carries counts as if stable carried it, since each version has instances for its share of the count.
    """
    if not known:
        return None
    return total / current if known >= current else mean_of([total / known] * known + [None] * (current - known), target)
