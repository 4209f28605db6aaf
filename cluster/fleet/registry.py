"""Which instances exist, what they are called, and which state each is in.

Sync and without a clock: its callers report what happened. A name is `instance-N` per agent, the lowest free N, so
that a restarted instance gets its old name back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cluster.instance_state import DRAINING, EJECTED, HEALTHY, STARTING, STOPPED, UNHEALTHY, InstanceState
from cluster.messages import Registration
from policies.rate_limit import RateRule

REMOVED_KEPT = 1_000


@dataclass
class InstanceRecord:
    """One registered instance; its state follows from the other fields."""

    id: str
    registration: Registration
    answering: bool | None = None  # None: no report yet
    well: bool | None = None  # the verdict of its health checks; None: none yet
    draining: bool = False
    stopped: bool = False  # draining, and its sessions have ended: it finishes its requests
    held: str = ""  # why it is held unhealthy, whatever its health checks report; not saved
    reason: str = ""  # why it is not healthy
    checked_at: float | None = None  # seconds since the epoch
    in_flight: int = 0  # the sum of what all gateways count
    cpu_percent: float | None = None

    @property
    def state(self) -> InstanceState:
        if self.draining:
            return STOPPED if self.stopped else DRAINING
        if self.answering is False:
            return EJECTED
        if self.well is False or self.held:
            return UNHEALTHY
        return HEALTHY if self.answering and self.well else STARTING

    def __repr__(self) -> str:
        reason = f" ({self.held or self.reason})" if self.held or self.reason else ""
        return f"<InstanceRecord {self.id} of {self.registration.agent}: {self.state}{reason}>"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.registration.agent, self.registration.version, self.registration.region, self.id)


class Registry:
    """All records, by agent and by replica. `changed` is called after every change that concerns the gateways."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._records: dict[str, InstanceRecord] = {}  # by replica
        self._changed = changed
        self._removed: deque[str] = deque(maxlen=REMOVED_KEPT)  # replicas that may still run their stop hooks

    def __iter__(self) -> Iterator[InstanceRecord]:
        return iter(sorted(self._records.values(), key=lambda record: (record.registration.agent, _number(record.id))))

    def get(self, replica: str) -> InstanceRecord | None:
        return self._records.get(replica)

    def ever_registered(self) -> set[str]:
        """Every replica that is or was registered."""
        return {*self._records, *self._removed}

    def of(self, agent: str, version: str | None = None, region: str | None = None) -> list[InstanceRecord]:
        return [
            record
            for record in self
            if record.registration.agent == agent
            and version in (None, record.registration.version)
            and region in (None, record.registration.region)
        ]

    def admit(self, new: Registration, reserved: Collection[str] = ()) -> InstanceRecord:
        """The instance's record, made when it has none. The name that it had before is kept if it is free.

        `reserved`: names that only the instance that had them before may have.
        """
        record = self._records.get(new.replica)
        if record is not None:
            return record
        taken = {record.id for record in self.of(new.agent)}
        name = new.id if new.id and new.id not in taken else lowest_free({*taken, *reserved})
        record = self._records[new.replica] = InstanceRecord(name, new)
        self._changed()
        return record

    def observe(self, replica: str, *, draining: bool = False, stopped: bool = False) -> bool:
        """The instance responds, and reports whether it drains. Here and below: True when its state changed."""
        return self._update(replica, answering=True, draining=draining, stopped=stopped)

    def eject(self, replica: str, reason: str) -> bool:
        """The instance does not respond."""
        return self._update(replica, reason, answering=False)

    def judge(self, replica: str, well: bool | None, reason: str, checked_at: float | None) -> bool:
        """The verdict of its health checks."""
        return self._update(replica, reason, well=well, checked_at=checked_at)

    def hold(self, replica: str, reason: str) -> bool:
        """Count the instance as unhealthy for this reason; "": its health checks decide again."""
        return self._update(replica, held=reason)

    def drain(self, replica: str, reason: str) -> bool:
        """Stop new requests to the instance; this cannot be undone."""
        return self._update(replica, reason, draining=True)

    def _update(self, replica: str, reason: str | None = None, *, draining: bool = False, **fields: Any) -> bool:
        record = self._records.get(replica)
        if record is None:
            return False
        before = record.state
        for name, value in fields.items():
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
            self._removed.append(replica)
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
        """From the state file: taken as true until the liveness watch reports otherwise, so that no request fails meanwhile."""
        for entry in dumped:
            registration = _registration(entry["registration"])
            self._records[registration.replica] = InstanceRecord(
                entry["id"], registration, entry["answering"], entry["well"], entry["draining"]
            )


def _registration(dumped: dict[str, Any]) -> Registration:
    """Older files have `rate_limited` in place of `rate_rules`."""
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
