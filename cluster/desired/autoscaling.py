"""How many instances should each region have now? The policy's proposal, or an operator's number; kept in the state.

Serve only executes: its apps are started with `external_scaler_enabled=True` and given a count (`serve_internals.scale`).
Serve's own autoscaling is not used: changed bounds would mean another deploy, which restarts instances, and it counts calls
of handles, which our requests bypass. When a count shrinks, Serve chooses the replicas to stop (those that do not run yet
first, then those on nodes with the fewest replicas, then the newest); 2.60 has no public way to name them. They drain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cluster.config import AgentSettings, Scaling, Settings
from cluster.desired.state import Counts, InstanceCount
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.instance_state import HEALTHY
from cluster.messages import Observation
from policies.scaling import History, Metric, desired, mean_of

FRESH_S = 5.0  # how long a gateway's report of waiting and refused requests is valid
IDLE_S = 3.0  # a gateway reports every second
CPU, CONNECTIONS = "CPU percent", "requests in flight"
OPERATOR = "set by an operator"
LEAST = 1e-3  # of the target: proposes one instance


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
    """The fewest and the most instances that the region may have; its own bounds override those of `scaling`."""
    own, scaling = agent.regions[region], agent.scaling
    least = own.min_instances if own.min_instances is not None else scaling.min_instances if scaling else 0
    most = own.max_instances if own.max_instances is not None else scaling.max_instances if scaling else None
    return least, most


def count_of(agent: AgentSettings, region: str, counts: Counts) -> int:
    """How many instances should run: the remembered count unless the number in the file has changed since, else the file's."""
    in_file = agent.regions[region].instances
    entry = counts.get(agent.name, {}).get(region)
    count = entry.instances if entry and entry.file == in_file else in_file
    if agent.scaling is None:
        return count
    least, most = bounds(agent, region)
    return max(least, count if most is None else min(most, count))


def counted(agent: AgentSettings, counts: Counts) -> AgentSettings:
    """The settings with the number of instances that each region should have now, whatever version they belong to."""
    regions = {name: replace(region, instances=count_of(agent, name, counts)) for name, region in agent.regions.items()}
    return replace(agent, regions=regions)


def with_counts(settings: Settings, counts: Counts) -> Settings:
    return replace(settings, agents={name: counted(agent, counts) for name, agent in settings.agents.items()})


@dataclass(frozen=True)
class _Load:
    """One region of an agent in this second."""

    running: int  # instances of the stable version
    measured: int  # those of them whose load is known
    cpu_percent: float  # sum over all measured instances, a canary's included
    in_flight: int  # as well
    waiting: float  # requests that wait for capacity at the gateways
    refused: bool  # whether a request found no instance lately
    idle: bool  # no gateway has reported a request lately

    def metrics(self, scaling: Scaling, current: int) -> dict[str, Metric]:
        """What the policy compares; `current`: how many instances should run now."""
        if not current:  # nothing runs: a request that found no instance is the demand
            return {CONNECTIONS: Metric(max(self.waiting, float(self.refused)), scaling.target_connections or 1.0)}
        if self.idle and current == 1:  # an idle process uses some CPU; that is no reason to keep the last one
            return {CONNECTIONS: Metric(0.0, scaling.target_connections or 1.0)}
        sums = {
            CPU: (self.cpu_percent, scaling.target_cpu),
            CONNECTIONS: (self.waiting + self.in_flight, scaling.target_connections),
        }
        return {
            name: Metric(self._value(name, total, current, target), target)
            for name, (total, target) in sums.items()
            if target is not None
        }

    def _value(self, name: str, total: float, current: int, target: float) -> float | None:
        """Requests that are over when the instance reports its count keep the last instance as well."""
        mean = _mean(total, self.measured, current, target)
        return max(mean, LEAST * target) if mean is not None and name == CONNECTIONS and current == 1 else mean


class Autoscaling:
    """Changes `counts`, which is part of the Controller's state. `settings` are always the file's, without counts."""

    def __init__(self, registry: Registry, counts: Counts) -> None:
        self._registry, self._counts = registry, counts
        self._histories: dict[tuple[str, str], History] = {}
        self._queued: dict[str, tuple[float, Mapping[str, int]]] = {}  # by gateway: when, and requests by agent
        self._requested: dict[tuple[str, str], float] = {}  # by agent and region: when a gateway last reported a request
        self._refused: dict[str, float] = {}  # by agent: when a request last found no instance

    def observe(self, observation: Observation, now: float) -> bool:
        """The requests that wait at a gateway, and those that it refused.

        True: requests have begun to wait for a first instance.
        """
        for (agent, _, region, _), counts in observation.instances.items():
            if counts.codes or counts.active:
                self._requested[agent, region] = now
        _, before = self._queued.get(observation.gateway, (now, {}))
        self._queued[observation.gateway] = (now, observation.queued)
        for agent, status in observation.refusals:
            if status == 503:
                self._refused[agent] = now
        return any(
            waiting and not before.get(agent) and not self._registry.of(agent) for agent, waiting in observation.queued.items()
        )

    def look(self, settings: Settings, now: float, wall: float) -> list[ScalingChange]:
        """Call once a second. `wall`: seconds since the epoch."""
        self._forget(settings, now, wall)
        changes = [
            self._look_at(agent, agent.scaling, region, now, wall)
            for agent in settings.agents.values()
            if agent.scaling is not None
            for region in agent.regions
        ]
        return [change for change in changes if change is not None]

    def fix(
        self,
        settings: Settings,
        name: str,
        region: str | None,
        instances: int,
        wall: float,
        save: Callable[[], None] = lambda: None,
    ) -> ScalingChange:
        """Set an operator's count and `save` it; if that raises, the count is as before.

        Raises ValueError with a sentence when the count is not allowed.
        """
        agent = settings.agents.get(name)
        if agent is None:
            raise ValueError(f"there is no agent {name!r} (known: {', '.join(settings.agents) or 'none'})")
        if region is None and len(agent.regions) == 1:
            region = next(iter(agent.regions))
        if region not in agent.regions:
            problem = "choose one with --region" if region is None else f"{region!r} is not one of its regions"
            raise ValueError(f"{name} runs in {', '.join(agent.regions)}: {problem}")
        least, most = bounds(agent, region)
        if instances < least or (most is not None and instances > most):
            allowed = f"at least {least}" if most is None else f"{least} to {most}"
            raise ValueError(
                f"{instances} instances of {name} in {region} are out of bounds: minInstances and maxInstances allow {allowed}"
            )
        counts = {agent: dict(regions) for agent, regions in self._counts.items()}
        change = self._set(agent, region, count_of(agent, region, self._counts), instances, OPERATOR, wall)
        try:
            save()
        except BaseException:
            self._counts.clear()
            self._counts.update(counts)
            raise
        self._histories.pop((name, region), None)  # proposals from before no longer apply
        return change

    def last(self, agent: str, region: str) -> tuple[str, float | None]:
        """Why the count was last changed, and when (seconds since the epoch)."""
        entry = self._counts.get(agent, {}).get(region)
        return (entry.reason, entry.at) if entry and entry.reason else ("", None)

    def least(self, agent: AgentSettings, region: str) -> int:
        """How many instances `up` waits for: all of them, but only minInstances of a count that autoscaling chose."""
        count, entry = agent.regions[region].instances, self._counts.get(agent.name, {}).get(region)
        autoscaled = agent.scaling is not None and entry is not None and entry.reason not in ("", OPERATOR)
        return min(count, bounds(agent, region)[0]) if autoscaled else count

    def _look_at(self, agent: AgentSettings, scaling: Scaling, region: str, now: float, wall: float) -> ScalingChange | None:
        current, (least, most) = count_of(agent, region, self._counts), bounds(agent, region)
        load = self._load(agent, region, now)
        if region not in self._counts.get(agent.name, {}):
            found = min(load.running, load.running if most is None else most)
            if found > current:  # the state was lost: continue with what runs
                return self._set(agent, region, current, found, "found running", wall)
            self._set(agent, region, current, current, "", wall)
        history = self._histories.setdefault((agent.name, region), History())
        history.downscale_delay_s = scaling.downscale_delay_s
        metrics = load.metrics(scaling, current)
        target = desired(current, metrics, least, scaling.max_instances if most is None else most, history, now)
        return self._set(agent, region, current, target, history.reason, wall) if target != current else None

    def _load(self, agent: AgentSettings, region: str, now: float) -> _Load:
        records = [record for record in self._registry.of(agent.name, None, region) if not record.draining]
        stable = [record for record in records if record.registration.version == agent.version]
        measured = [record for record in records if _is_measured(record)]
        return _Load(
            running=len(stable),
            measured=sum(_is_measured(record) for record in stable),
            cpu_percent=sum(record.cpu_percent or 0.0 for record in measured),
            in_flight=sum(record.in_flight for record in measured),
            waiting=self._waiting(agent.name, now),
            refused=now - self._refused.get(agent.name, -FRESH_S) < FRESH_S,
            idle=not self._waiting(agent.name, now) and now - self._requested.get((agent.name, region), -IDLE_S) >= IDLE_S,
        )

    def _waiting(self, agent: str, now: float) -> float:
        """This region's share of the requests that wait at all gateways: the agent's regions share them equally."""
        regions = max(1, len(self._counts.get(agent, {})))
        return sum(queued.get(agent, 0) for at, queued in self._queued.values() if now - at < FRESH_S) / regions

    def _set(self, agent: AgentSettings, region: str, before: int, after: int, reason: str, wall: float) -> ScalingChange:
        count = InstanceCount(after, agent.regions[region].instances, reason, wall)
        self._counts.setdefault(agent.name, {})[region] = count
        return ScalingChange(agent.name, agent.version, region, before, after, reason)

    def _forget(self, settings: Settings, now: float, wall: float) -> None:
        """Drop counts of agents and regions that left the file, or whose number in it has changed."""
        for name in list(self._counts):
            agent = settings.agents.get(name)
            if agent is None:
                del self._counts[name]
                continue
            for region, entry in list(self._counts[name].items()):
                if region not in agent.regions or (agent.scaling is None and entry.reason != OPERATOR):
                    del self._counts[name][region]
            for region, entry in self._counts[name].items():
                if entry.file != agent.regions[region].instances:
                    count = count_of(agent, region, self._counts)
                    self._set(agent, region, count, count, "", wall)
                    self._histories.pop((name, region), None)
        for key in [key for key in self._histories if key[1] not in self._counts.get(key[0], {})]:
            del self._histories[key]
        self._queued = {gateway: report for gateway, report in self._queued.items() if now - report[0] < FRESH_S}


def _is_measured(record: InstanceRecord) -> bool:
    """Not while it takes no requests, nor before its first report since the Controller started."""
    return record.state == HEALTHY and record.cpu_percent is not None


def _mean(total: float, measured: int, current: int, target: float) -> float | None:
    """Per instance of the stable version that should run: `measured` of them are among those that made `total`.

    A canary's load counts as if the stable version carried it, since each version has instances for its share of the count.
    """
    if not measured:
        return None
    if measured >= current:
        return total / current
    return mean_of([total / measured] * measured + [None] * (current - measured), target)
