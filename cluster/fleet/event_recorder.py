"""Which events follow from a change? Compares the cluster with its last state: instances, gateways, breakers, settings.

Sync and without a clock. The Controller passes the registry after every change; the recorder keeps what it has compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config import AgentSettings, GatewaySettings, Settings
from cluster.fleet.crash_loops import CrashSlot
from cluster.fleet.registry import InstanceRecord
from cluster.instance_state import CRASH_LOOP, DRAINING, EJECTED, HEALTHY, STARTING, STOPPED, UNHEALTHY, InstanceState
from cluster.messages import GatewayHello
from cluster.telemetry.events import Events
from policies.breaker import State
from policies.priority import Level, level_loads
from policies.sessions.moved import Cause

QUIET_S = 10.0  # a series of rejected requests is over after this long without another
LONGEST_S = 60.0  # a series of moved sessions that goes on is reported at least this often
MOST_LISTED = 4  # further changes are counted, not listed

MOVED_BECAUSE: dict[Cause, str] = {
    "drained": "their instance was drained",
    "died": "their instance stopped without draining",
    "unhealthy": "their instance is unhealthy",
    "unresponsive": "their instance does not respond",
    "unknown": "their instance is no longer available",
}


@dataclass(frozen=True)
class _Instance:
    """The part of an instance's record that events depend on."""

    id: str
    agent: str
    version: str
    region: str
    state: InstanceState

    @property
    def labels(self) -> dict[str, Any]:
        return {"agent": self.agent, "instance": self.id, "version": self.version, "region": self.region}


@dataclass
class _Series:
    """A count that grows for a while: `total` now, `reported` in the last event. `since`: None while it does not grow."""

    total: int = 0
    reported: int = 0
    since: float | None = None
    last: float = 0.0


class EventRecorder:
    """Adds an event to `events` for each difference from the last comparison."""

    def __init__(self, events: Events, records: Iterable[InstanceRecord]) -> None:
        """`records`: instances that existed before; they cause no events."""
        self._events = events
        self._instances = {record.registration.replica: _instance(record) for record in records}
        self._levels: dict[str, tuple[int, ...]] = {}
        self._limits: dict[tuple[str, str], tuple[int, float | None, float]] = {}  # total before, since when, last when
        self._totals: dict[tuple[str, str], int] = {}
        self._moved: dict[tuple[str, Cause], _Series] = {}

    def instances(self, records: Iterable[InstanceRecord]) -> None:
        """Instances that started, stopped or changed their state."""
        now = {record.registration.replica: (_instance(record), record.held or record.reason) for record in records}
        for replica, before in self._instances.items():
            if replica not in now:
                stopped = before.state in (DRAINING, STOPPED)
                message = (
                    f"{before.id} stopped" if stopped else f"{before.id} stopped unexpectedly: its process no longer responds"
                )
                self._events.add("instance", message, **before.labels, state="gone")
        for replica, (instance, reason) in now.items():
            known = self._instances.get(replica)
            if known is None or known.state != instance.state:
                self._add_transition(instance, known.state if known else "", reason)
        self._instances = {replica: instance for replica, (instance, _) in now.items()}

    def _add_transition(self, instance: _Instance, before: str, reason: str) -> None:
        because = f": {reason}" if reason else ""
        name, recovered = instance.id, before in (UNHEALTHY, EJECTED)
        kind, message = {
            STARTING: ("instance", f"{name} is starting in {instance.region}"),
            HEALTHY: ("health", f"{name} is healthy again") if recovered else
                     ("instance", f"{name} started in {instance.region}"),
            UNHEALTHY: ("health", f"{name} is unhealthy{because}"),
            EJECTED: ("health", f"{name} is unresponsive{because}"),
            DRAINING: ("instance", f"{name} is draining{because}"),
            STOPPED: ("instance", f"{name} accepts no more requests and finishes those in flight"),
        }[instance.state]  # fmt: skip
        self._events.add(kind, message, **instance.labels, state=instance.state, before=before, reason=reason)

    def crash_loop(self, slot: CrashSlot, delay_s: float) -> None:
        """An instance has crashed again; its next start is delayed."""
        because = f" ({slot.reason})" if slot.reason else ""
        message = (
            f"{slot.id} crashed {slot.crashes} times in a row soon after its start{because}: it starts again in {delay_s:g} s"
        )
        self._events.add(
            "instance", message, agent=slot.agent, instance=slot.id, version=slot.version, region=slot.region,
            state=CRASH_LOOP, crashes=slot.crashes, delay_s=delay_s, reason=slot.reason,
        )  # fmt: skip

    def circuit(self, record: InstanceRecord, state: State) -> None:
        """A gateway reports a new state of the instance's circuit breaker."""
        message = {
            "open": f"the circuit breaker of {record.id} opened: too many failures",
            "half-open": f"the circuit breaker of {record.id} is half-open: one request probes the instance",
            "closed": f"the circuit breaker of {record.id} closed: the instance responds again",
        }[state]
        self._events.add("breaker", message, **_instance(record).labels, state=state)

    def gateway(self, hello: GatewayHello, change: str = "started") -> None:
        """A gateway started, stopped, or is no longer available."""
        what = "a worker of the gateway" if hello.worker_of else "the gateway"
        where = f"{what} on {hello.settings.host}:{hello.settings.port} (pid {hello.pid})"
        message = f"{where} {change}"
        self._events.add("gateway", message, region=hello.settings.region, pid=hello.pid, gateway=hello.gateway)

    def applied(self, before: Settings, after: Settings) -> None:
        """What a new cluster.yaml changes: one event per agent."""
        for name in dict.fromkeys((*before.agents, *after.agents)):
            old, new = before.agents.get(name), after.agents.get(name)
            if old == new:
                continue
            changes = {} if old is None or new is None else _differences(old, new)
            what = "added" if old is None else "removed" if new is None else _sentence(changes)
            self._events.add("config", f"{name}: {what}", agent=name, changes=changes)
        if before.gateways != after.gateways:
            gateways = [_fields(gateway) for gateway in after.gateways]
            self._events.add("config", "the gateway settings changed", gateways=gateways)

    def limit(self, agent: str, what: str, total: int, now: float) -> None:
        """`total` requests were `what` (say, rate-limited) so far. An event when a series begins, and when it is over."""
        before, since, last = self._limits.get((agent, what), (0, None, 0.0))
        if since is None and total > before:
            self._events.add("limit", f"{agent}: requests are {what}", agent=agent, what=what)
            self._limits[agent, what] = (before, now, now)
            self._totals[agent, what] = total
        elif since is not None and total > self._totals[agent, what]:
            self._limits[agent, what] = (before, since, now)
            self._totals[agent, what] = total
        elif since is not None and now - last > QUIET_S:
            count = total - before
            message = (
                f"{agent}: requests are no longer {what}; {count} requests were {what} within {max(1, round(last - since))} s"
            )
            self._events.add("limit", message, agent=agent, what=what, count=count)
            self._limits[agent, what] = (total, None, now)

    def sessions_moved(self, agent: str, cause: Cause, total: int, now: float) -> None:
        """`total` sessions of the agent have moved for this cause so far: one event for all that move together."""
        series = self._moved.setdefault((agent, cause), _Series())
        if total > series.total:
            series.total, series.last = total, now
            series.since = now if series.since is None else series.since
        if series.since is None or (now - series.last <= QUIET_S and now - series.since <= LONGEST_S):
            return
        count = series.total - series.reported
        sessions = "1 session moved to another instance" if count == 1 else f"{count} sessions moved to other instances"
        because = MOVED_BECAUSE[cause] if count > 1 else MOVED_BECAUSE[cause].replace("their", "its", 1)
        self._events.add("session", f"{agent}: {sessions}: {because}", agent=agent, cause=cause, count=count)
        series.reported, series.since = series.total, None

    def levels(self, settings: Settings, records: Iterable[InstanceRecord]) -> None:
        """The division of traffic between priorities: an event when it spills over to the next one, and when it returns."""
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
                self._events.add("region", f"{name}: traffic by priority: {', '.join(parts)}", agent=name, percents=percents)


def _fields(gateway: GatewaySettings) -> dict[str, Any]:
    return {"region": gateway.region, "host": gateway.host, "port": gateway.port, "replicas": gateway.replicas}


def _instance(record: InstanceRecord) -> _Instance:
    registration = record.registration
    return _Instance(record.id, registration.agent, registration.version, registration.region, record.state)


def _regions(agent: AgentSettings, priority: int) -> list[str]:
    return [name for name, region in agent.regions.items() if region.priority == priority]


def _level(agent: AgentSettings, priority: int, records: Iterable[InstanceRecord]) -> Level:
    regions = _regions(agent, priority)
    own = [r for r in records if r.registration.agent == agent.name and r.registration.region in regions]
    states = [r.state for r in own if not r.draining]
    return Level(len(states), states.count(HEALTHY), excluded=states.count(STARTING))


def _differences(old: AgentSettings, new: AgentSettings) -> dict[str, list[Any]]:
    before, after = dict(_leaves(old.to_block())), dict(_leaves(new.to_block()))
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return {path: [before.get(path), after.get(path)] for path in paths}


def _leaves(block: Mapping[str, Any], at: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in block.items():
        has_more = isinstance(value, Mapping) and value
        leaves += _leaves(value, f"{at}{name}.") if has_more else [(f"{at}{name}", value)]
    return leaves


def _sentence(changes: Mapping[str, list[Any]]) -> str:
    if not changes:
        return "changed"
    listed = [f"{path} changed from {_word(old)} to {_word(new)}" for path, (old, new) in changes.items()]
    more = len(listed) - MOST_LISTED
    return "; ".join(listed[:MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _word(value: Any) -> str:
    return "the default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
