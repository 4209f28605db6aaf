"""Which instances exist, what they are called, and who may be sent a request.

Sync and without a clock: the Controller tells it what happened. A name is `instance-N` per agent, the lowest free N, so
that a restarted instance gets its old name back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config import Settings
from cluster.messages import AgentView, Member, Registration, Snapshot


@dataclass
class Record:
    """One registered instance: what is known of it, from which its state follows."""

    id: str
    registration: Registration
    answering: bool | None = None  # None: not heard of yet
    well: bool | None = None  # what its checks say; None: nothing yet
    draining: bool = False
    reason: str = ""  # why it is not well, or not answering
    checked_at: float | None = None  # seconds since the epoch
    in_flight: int = 0  # as it says itself
    cpu_percent: float | None = None

    @property
    def state(self) -> str:
        """starting, healthy, unhealthy (its checks fail), ejected (it does not answer) or draining."""
        if self.draining:
            return "draining"
        if self.answering is False:
            return "ejected"
        if self.well is False:
            return "unhealthy"
        return "healthy" if self.answering and self.well else "starting"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.registration.agent, self.registration.version, self.registration.region, self.id)


class Registry:
    """All records, by agent and by replica. `changed` is called after every change that gateways must know of."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._records: dict[str, Record] = {}  # by replica
        self._changed = changed

    def __iter__(self) -> Iterator[Record]:
        return iter(sorted(self._records.values(), key=lambda record: (record.registration.agent, _number(record.id))))

    def get(self, replica: str) -> Record | None:
        return self._records.get(replica)

    def of(self, agent: str, version: str | None = None, region: str | None = None) -> list[Record]:
        return [
            record
            for record in self
            if record.registration.agent == agent
            and version in (None, record.registration.version)
            and region in (None, record.registration.region)
        ]

    def admit(self, new: Registration) -> Record:
        """A record for it; the same one when it is known already. A name it says it has is kept if it is free."""
        known = self._records.get(new.replica)
        if known is not None:
            return known
        taken = {record.id for record in self.of(new.agent)}
        name = new.id if new.id and new.id not in taken else lowest_free(taken)
        record = self._records[new.replica] = Record(name, new)
        self._changed()
        return record

    def hear(self, replica: str, *, draining: bool = False) -> bool:
        """It answers, and says whether it is about to stop. Like the others here: True when its state changed."""
        return self._learn(replica, answering=True, draining=draining)

    def silent(self, replica: str, reason: str) -> bool:
        """It does not answer."""
        return self._learn(replica, reason, answering=False)

    def judge(self, replica: str, well: bool | None, reason: str, checked_at: float | None) -> bool:
        """What its checks say."""
        return self._learn(replica, reason, well=well, checked_at=checked_at)

    def drain(self, replica: str, reason: str) -> bool:
        """It gets nothing new; there is no way back."""
        return self._learn(replica, reason, draining=True)

    def _learn(self, replica: str, reason: str | None = None, *, draining: bool = False, **known: Any) -> bool:
        record = self._records.get(replica)
        if record is None:
            return False
        before = record.state
        for name, value in known.items():
            setattr(record, name, value)
        record.draining = record.draining or draining
        if reason is not None:
            record.reason = reason
        if record.state == before:
            return False
        self._changed()
        return True

    def remove(self, replica: str) -> Record | None:
        record = self._records.pop(replica, None)
        if record is not None:
            self._changed()
        return record

    def dump(self) -> list[dict[str, Any]]:
        """For the state file."""
        return [
            {
                "id": record.id,
                "answering": record.answering,
                "well": record.well,
                "draining": record.draining,
                "registration": vars(record.registration),
            }
            for record in self
        ]

    def restore(self, dumped: Iterable[dict[str, Any]]) -> None:
        """From the state file: believed until a watch says otherwise, so that no request fails meanwhile."""
        for entry in dumped:
            registration = Registration(**entry["registration"])
            self._records[registration.replica] = Record(
                entry["id"], registration, entry["answering"], entry["well"], entry["draining"]
            )

    def view(self, settings: Settings, version: str, key: str, session_keys: tuple[str, ...]) -> Snapshot:
        """What gateways are told."""
        agents = {}
        for name, agent in settings.agents.items():
            records = self.of(name)
            file_says = agent.load_balancing.session_affinity.enabled
            code_says = any(record.registration.session_affinity for record in records)
            agents[name] = AgentView(
                settings=agent,
                session_affinity=code_says if file_says is None else file_says,
                members=tuple(_member(record, settings) for record in records),
            )
        return Snapshot(
            version=version,
            key=key,
            http=settings.http,
            agents=agents,
            session_keys=session_keys,
            client_regions=settings.client_regions,
            trusted_proxies=settings.trusted_proxies,
            distances_ms=settings.distances_ms,
        )


def _member(record: Record, settings: Settings) -> Member:
    known = record.registration
    region = settings.agents[known.agent].regions.get(known.region)
    return Member(
        id=record.id,
        replica=known.replica,
        host=known.host,
        port=known.port,
        version=known.version,
        region=known.region,
        priority=region.priority if region else 1,
        state=record.state,
        started_at=known.started_at,
    )


def lowest_free(taken: Iterable[str]) -> str:
    """`instance-N` with the lowest N >= 1 that is not taken."""
    numbers = {_number(name) for name in taken}
    candidate = 1
    while candidate in numbers:
        candidate += 1
    return f"instance-{candidate}"


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
