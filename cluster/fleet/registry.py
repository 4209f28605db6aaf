"""Which instances exist, what they are called, and which state each is in.

Sync and without a clock: the Controller tells it what happened. A name is `instance-N` per agent, the lowest free N, so
that a restarted instance gets its old name back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cluster.messages import Registration
from policies.rate_limit import RateRule

LEFT_KEPT = 1_000


@dataclass
class InstanceRecord:
    """One registered instance: what is known of it, from which its state follows."""

    id: str
    registration: Registration
    answering: bool | None = None  # None: not heard of yet
    well: bool | None = None  # what its checks say; None: nothing yet
    draining: bool = False
    stopped: bool = False  # draining, and by now without its sessions: it finishes what it has
    held: str = ""  # why it is held as not well, whatever its checks say; not remembered
    reason: str = ""  # why it is not well, or not answering
    checked_at: float | None = None  # seconds since the epoch
    in_flight: int = 0  # as it says itself
    cpu_percent: float | None = None

    @property
    def state(self) -> str:
        """starting, healthy, unhealthy (its checks fail), ejected (it does not answer), draining or stopped (takes nothing)."""
        if self.draining:
            return "stopped" if self.stopped else "draining"
        if self.answering is False:
            return "ejected"
        if self.well is False or self.held:
            return "unhealthy"
        return "healthy" if self.answering and self.well else "starting"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.registration.agent, self.registration.version, self.registration.region, self.id)


class Registry:
    """All records, by agent and by replica. `changed` is called after every change that gateways must know of."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._records: dict[str, InstanceRecord] = {}  # by replica
        self._changed = changed
        self._left: deque[str] = deque(maxlen=LEFT_KEPT)  # replicas that were here: they may still run their stop hooks

    def __iter__(self) -> Iterator[InstanceRecord]:
        return iter(sorted(self._records.values(), key=lambda record: (record.registration.agent, _number(record.id))))

    def get(self, replica: str) -> InstanceRecord | None:
        return self._records.get(replica)

    def met(self) -> set[str]:
        """Every replica that is or was here."""
        return {*self._records, *self._left}

    def of(self, agent: str, version: str | None = None, region: str | None = None) -> list[InstanceRecord]:
        return [
            record
            for record in self
            if record.registration.agent == agent
            and version in (None, record.registration.version)
            and region in (None, record.registration.region)
        ]

    def admit(self, new: Registration) -> InstanceRecord:
        """A record for it; the same one when it is known already. A name it says it has is kept if it is free."""
        known = self._records.get(new.replica)
        if known is not None:
            return known
        taken = {record.id for record in self.of(new.agent)}
        name = new.id if new.id and new.id not in taken else lowest_free(taken)
        record = self._records[new.replica] = InstanceRecord(name, new)
        self._changed()
        return record

    def hear(self, replica: str, *, draining: bool = False, stopped: bool = False) -> bool:
        """It answers, and says whether it is about to stop. Like the others here: True when its state changed."""
        return self._learn(replica, answering=True, draining=draining, stopped=stopped)

    def silent(self, replica: str, reason: str) -> bool:
        """It does not answer."""
        return self._learn(replica, reason, answering=False)

    def judge(self, replica: str, well: bool | None, reason: str, checked_at: float | None) -> bool:
        """What its checks say."""
        return self._learn(replica, reason, well=well, checked_at=checked_at)

    def hold(self, replica: str, reason: str) -> bool:
        """It counts as not well for this reason; without one its checks decide again."""
        return self._learn(replica, held=reason)

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

    def remove(self, replica: str) -> InstanceRecord | None:
        record = self._records.get(replica)
        if record is not None:
            del self._records[replica]
            self._left.append(replica)
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
                "registration": asdict(record.registration),
            }
            for record in self
        ]

    def restore(self, dumped: Iterable[dict[str, Any]]) -> None:
        """From the state file: believed until a watch says otherwise, so that no request fails meanwhile."""
        for entry in dumped:
            registration = _registration(entry["registration"])
            self._records[registration.replica] = InstanceRecord(
                entry["id"], registration, entry["answering"], entry["well"], entry["draining"]
            )


def _registration(dumped: dict[str, Any]) -> Registration:
    """`rate_limited` is what stood there before the rules did."""
    fields = {name: value for name, value in dumped.items() if name != "rate_limited"}
    return Registration(**{**fields, "rate_rules": tuple(RateRule(**rule) for rule in fields.get("rate_rules", ()))})


def lowest_free(taken: Iterable[str]) -> str:
    """`instance-N` with the lowest N >= 1 that is not taken."""
    numbers = {_number(name) for name in taken}
    candidate = 1
    while candidate in numbers:
        candidate += 1
    return f"instance-{candidate}"


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
