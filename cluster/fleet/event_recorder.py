"""From two looks at the cluster to events: which instances and gateways came, went or changed, what a new file changes.

Sync and without a clock. The Controller shows it the registry after every change; what it has shown before is the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config import AgentSettings, Settings
from cluster.fleet.registry import InstanceRecord
from cluster.messages import GatewayHello
from cluster.telemetry.events import Events
from policies.breaker import State
from policies.priority import Level, level_loads

QUIET_S = 10.0  # without another one for this long it is over
MANY = 4  # more changes than this are counted, not listed


@dataclass(frozen=True)
class _Seen:
    id: str
    agent: str
    version: str
    region: str
    state: str

    @property
    def names(self) -> dict[str, Any]:
        return {"agent": self.agent, "instance": self.id, "version": self.version, "region": self.region}


class EventRecorder:
    """Writes into `events` what differs from the last time."""

    def __init__(self, events: Events, records: Iterable[InstanceRecord]) -> None:
        """`records`: what is known already; nothing is told of it."""
        self._events = events
        self._instances = {record.registration.replica: _seen(record) for record in records}
        self._levels: dict[str, tuple[int, ...]] = {}
        self._limits: dict[tuple[str, str], tuple[int, float | None, float]] = {}  # counted before, since when, last when
        self._counted: dict[tuple[str, str], int] = {}

    def instances(self, records: Iterable[InstanceRecord]) -> None:
        now = {record.registration.replica: (_seen(record), record.held or record.reason) for record in records}
        for replica, before in self._instances.items():
            if replica not in now:
                told = before.state in ("draining", "stopped")
                why = "it was told to stop" if told else "its process does not answer any more"
                self._events.add("instance", f"{before.id} is gone: {why}", **before.names, state="gone")
        for replica, (seen, reason) in now.items():
            known = self._instances.get(replica)
            if known is None or known.state != seen.state:
                self._tell(seen, known.state if known else "", reason)
        self._instances = {replica: seen for replica, (seen, _) in now.items()}

    def _tell(self, seen: _Seen, before: str, reason: str) -> None:
        because = f": {reason}" if reason else ""
        kind, message = {
            "starting": ("instance", f"{seen.id} has started in {seen.region}"),
            "healthy": ("health", f"{seen.id} is healthy again") if before in ("unhealthy", "ejected") else
                       ("instance", f"{seen.id} is up in {seen.region}"),
            "unhealthy": ("health", f"{seen.id} is unhealthy{because}"),
            "ejected": ("health", f"{seen.id} does not answer{because}"),
            "draining": ("instance", f"{seen.id} gets no new requests{because}"),
            "stopped": ("instance", f"{seen.id} takes nothing any more and finishes what it has"),
        }[seen.state]  # fmt: skip
        self._events.add(kind, message, **seen.names, state=seen.state, before=before, reason=reason)

    def circuit(self, record: InstanceRecord, state: State) -> None:
        """Its breaker, as a gateway says."""
        said = {
            "open": f"the circuit breaker of {record.id} has opened: it keeps failing",
            "half-open": f"{record.id} is being probed",
            "closed": f"the circuit breaker of {record.id} has closed: it answers again",
        }[state]
        self._events.add("breaker", said, **_seen(record).names, state=state)

    def gateway(self, hello: GatewayHello, *, gone: str = "") -> None:
        """It has come; or it is gone, and why."""
        where = f"{hello.settings.host}:{hello.settings.port}"
        said = f"the gateway on {where} (pid {hello.pid}) is gone: {gone}" if gone else f"a gateway serves {where}"
        self._events.add("gateway", said, region=hello.settings.region, pid=hello.pid, gateway=hello.gateway)

    def applied(self, before: Settings, after: Settings) -> None:
        """What a new cluster.yaml changes, an event for each agent that it concerns."""
        for name in dict.fromkeys((*before.agents, *after.agents)):
            old, new = before.agents.get(name), after.agents.get(name)
            if old == new:
                continue
            changes = {} if old is None or new is None else _differences(old, new)
            said = "was added" if old is None else "was removed" if new is None else _sentence(changes)
            self._events.add("config", f"{name}: {said}", agent=name, changes=changes)
        if before.gateways != after.gateways:
            self._events.add("config", "the gateways were changed", gateways=[vars_of(one) for one in after.gateways])

    def limit(self, agent: str, what: str, total: int, now: float) -> None:
        """`what` happens to requests, so many since the start; told when it begins and when it has been over for a while."""
        before, since, last = self._limits.get((agent, what), (0, None, 0.0))
        if since is None and total > before:
            self._events.add("limit", f"{agent}: requests are {what}", agent=agent, what=what)
            self._limits[agent, what] = (before, now, now)
            self._counted[agent, what] = total
        elif since is not None and total > self._counted[agent, what]:
            self._limits[agent, what] = (before, since, now)
            self._counted[agent, what] = total
        elif since is not None and now - last > QUIET_S:
            count = total - before
            said = f"{agent}: no more requests are {what}; {count} were, within {max(1, round(last - since))} s"
            self._events.add("limit", said, agent=agent, what=what, count=count)
            self._limits[agent, what] = (total, None, now)

    def levels(self, settings: Settings, records: Iterable[InstanceRecord]) -> None:
        """How traffic is divided between priorities: told when it spills to the next, and when it comes home."""
        listed = list(records)
        for name, agent in settings.agents.items():
            priorities = sorted({region.priority for region in agent.regions.values()})
            if len(priorities) < 2 or agent.load_balancing.strategy == "geographic":
                continue
            levels = [_level(agent, priority, listed) for priority in priorities]
            loads = tuple(level_loads(levels).healthy)
            known, self._levels[name] = self._levels.get(name), loads
            if sum(loads) == 100 and loads != (known or (100, *[0] * (len(loads) - 1))):
                parts = [
                    f"{load} % to {' and '.join(_regions(agent, priority))}"
                    for priority, load in zip(priorities, loads, strict=True)
                    if load
                ]
                percents = {str(priority): load for priority, load in zip(priorities, loads, strict=True)}
                self._events.add("region", f"{name}: by priority {', '.join(parts)}", agent=name, percents=percents)


def vars_of(gateway: Any) -> dict[str, Any]:
    return {"region": gateway.region, "host": gateway.host, "port": gateway.port, "replicas": gateway.replicas}


def _seen(record: InstanceRecord) -> _Seen:
    known = record.registration
    return _Seen(record.id, known.agent, known.version, known.region, record.state)


def _regions(agent: AgentSettings, priority: int) -> list[str]:
    return [name for name, region in agent.regions.items() if region.priority == priority]


def _level(agent: AgentSettings, priority: int, records: Iterable[InstanceRecord]) -> Level:
    there = _regions(agent, priority)
    own = [r for r in records if r.registration.agent == agent.name and r.registration.region in there]
    states = [r.state for r in own if not r.draining]
    return Level(len(states), states.count("healthy"), excluded=states.count("starting"))


def _differences(old: AgentSettings, new: AgentSettings) -> dict[str, list[Any]]:
    before, after = dict(_leaves(old.to_block())), dict(_leaves(new.to_block()))
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return {path: [before.get(path), after.get(path)] for path in paths}


def _leaves(block: Mapping[str, Any], at: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in block.items():
        inside = isinstance(value, Mapping) and value
        found += _leaves(value, f"{at}{name}.") if inside else [(f"{at}{name}", value)]
    return found


def _sentence(changes: Mapping[str, list[Any]]) -> str:
    if not changes:
        return "was changed"
    said = [f"{path} is {_word(new)}, was {_word(old)}" for path, (old, new) in changes.items()]
    more = len(said) - MANY
    return "; ".join(said[:MANY]) + (f"; and {more} more" if more > 0 else "")


def _word(value: Any) -> str:
    return "the default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
