"""The record, indexed by what the rules ask of it: what was so at a moment, and which fault explains it."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.campaign.checker.verdict import Tolerances
from tests.campaign.record import Execution, Fault, InstanceRow, Record, Request, Sample

MISBEHAVING = frozenset({"leaver", "staller", "half-closer", "garbage"})
NETWORK = ("cut", "one_way", "one-way", "delay", "network")
DEFAULTS = {  # settings of the cluster that the record need not name, seconds
    "request": 6.0,
    "idle": 12.0,
    "drain": 25.0,
    "instances": 2.0,  # in each region
    "retry_attempts": 2.0,
    "slack": 0.0,  # what the machine may add to every time
}
LEAVING = ("draining", "stopped")
UNWELL = ("unhealthy", "ejected")


class History:
    """Answers questions about a record; changes nothing in it."""

    def __init__(self, record: Record, tolerances: Tolerances) -> None:
        self.record, self.facts, self.slack = record, record.facts, tolerances
        self.faults = [fault for fault in record.faults if not fault.skipped or fault.struck or fault.command]
        self.requests = [*record.requests, *record.counted]
        self.samples = sorted((one for one in record.samples if not one.away), key=lambda one: one.at)
        self._times = [sample.at for sample in self.samples]
        self.deaths = {death.pid: death.at for death in sorted(record.deaths, key=lambda one: -one.at)}  # the first of each
        self._looks = sorted(one.at for one in record.samples)  # at the admin port; at the processes just before each
        self._killers: dict[int, Fault | None] = {}
        self.executions: dict[str, list[Execution]] = defaultdict(list)
        self._codes: dict[int, set[str]] = defaultdict(set)
        for one in record.executions:
            self.executions[one.request].append(one)
            self._codes[one.pid].add(one.code)
        self._rows: dict[int, list[tuple[float, InstanceRow]]] = defaultdict(list)
        for sample in self.samples:
            for row in sample.instances:
                self._rows[row.pid].append((sample.at, row))

    def setting(self, name: str) -> float:
        return self.facts.settings.get(name, DEFAULTS[name])

    @property
    def late_s(self) -> float:
        """How much later than its time a request may end."""
        return max(self.slack.late_s, self.setting("slack"))

    def after_start(self, moment: float) -> float:
        return round(moment - self.facts.began, 1)

    # --- faults ---

    def around(self, start: float, end: float, before_s: float = 6.0) -> tuple[str, ...]:
        """The faults under way in that time or shortly before."""
        return tuple(self.name(one) for one in self.faults if one.began <= end and (one.ended or end) >= start - before_s)

    def name(self, fault: Fault) -> str:
        """kill_instance instance-2 62.6..62.8"""
        words = (fault.kind, fault.what, fault.instance or fault.region)
        return " ".join([*filter(None, words), f"{self.after_start(fault.began)}..{self.after_start(fault.ended)}"])

    def killer(self, pid: int) -> Fault | None:
        """The fault that killed this process."""
        if pid not in self._killers:
            self._killers[pid] = self._killer(pid)
        return self._killers[pid]

    def is_orphan(self, pid: int) -> bool:
        """Whether it was a worker whose gateway was killed: it ends by itself."""
        parents = {parent for sample in self.samples for worker, parent in sample.workers if worker == pid}
        return any(self.killer(parent) or parent == self.facts.counted_kill.get("pid") for parent in parents)

    def _killer(self, pid: int) -> Fault | None:
        died = self.deaths.get(pid)
        for fault in self.faults:
            if fault.kills and fault.struck and pid in fault.pids:
                return fault
            drill = fault.kind == "failover" and variant(fault) == "kill"
            if drill and died and fault.began <= died <= fault.ended + 1 and pid in self._drilled(fault, died):
                return fault
        return None

    def gone_since(self, pid: int) -> float | None:
        """From when on the process may be gone: its kill, else the last look before its death was noted."""
        killer, died = self.killer(pid), self.deaths.get(pid)
        if killer is not None and killer.kills:
            return killer.struck
        return None if died is None else self.look_before(died)

    def _drilled(self, fault: Fault, died: float) -> set[int]:
        return {*fault.pids, *self.pids_of(fault.instance, fault.began, died)}

    def frozen(self, start: float, end: float, pids: Iterable[int], after_s: float = 0.5) -> Fault | None:
        """The freeze of one of these processes that overlaps this time."""
        wanted = set(pids)
        freezes = (one for one in self.faults if one.freezes and one.struck and wanted & set(one.pids))
        return next((one for one in freezes if one.struck <= end and one.ended + after_s >= start), None)

    def frozen_instance(self, start: float, end: float) -> Fault | None:
        """Any freeze of an instance in that time."""
        return self.frozen(start, end, (pid for one in self.faults if one.instance for pid in one.pids))

    def gateway_freezes(self, request: Request) -> Iterator[Fault]:
        """Freezes of a gateway that the request may have been with."""
        for fault in self.faults:
            frozen = fault.kind == "freeze_gateway" and fault.struck and fault.struck <= request.ended
            if frozen and fault.ended + 0.5 >= request.began and self.may_be_with(fault, request):
                yield fault

    def may_be_with(self, fault: Fault, request: Request) -> bool:
        """Whether the request's connection is the gateway's that the fault hit, or may be, as it is too young to be listed."""
        listed = request.client_port in fault.client_ports
        read = fault.detail.get("ports_read", fault.began)
        return listed or not fault.client_ports or request.began >= read - self.slack.listing_s

    def cut(self, start: float, end: float, regions: set[str]) -> Fault | None:
        """A fault of the network of one of these regions; of any region if there is none."""
        return next(
            (
                one
                for one in self.faults
                if one.kind.startswith(NETWORK) and one.struck and one.struck <= end
                if (one.ended or end) + self.slack.breaker_s >= start and (not regions or one.region in regions)
            ),
            None,
        )

    # --- processes ---

    def between(self, start: float, end: float) -> list[Sample]:
        """Samples of that time, and the one before and after."""
        low, high = bisect.bisect_left(self._times, start), bisect.bisect_right(self._times, end)
        return self.samples[max(0, low - 1) : high + 1]

    def rows_of(self, pid: int) -> list[tuple[float, InstanceRow]]:
        return self._rows.get(pid, [])

    def pids_of(self, instance: str, start: float, end: float) -> set[int]:
        near = self.between(start - 1, end + 1)
        return {row.pid for sample in near for row in sample.instances if row.id == instance and row.pid}

    def regions_of(self, pids: Iterable[int]) -> set[str]:
        return {row.region for pid in pids for _, row in self.rows_of(pid)}

    def left(self, pid: int) -> bool:
        """Whether it was seen draining before it ended."""
        return any(row.state in LEAVING for _, row in self.rows_of(pid))

    def look_before(self, moment: float) -> float:
        """When the sampler last looked before this moment; an admin port that does not answer holds it up."""
        place = bisect.bisect_left(self._looks, moment)
        return self._looks[place - 1] if place else moment

    def well(self, sample: Sample, at: float = 0.0) -> set[int]:
        """Processes that could take a request: shown as healthy, and `at` that moment neither dead, frozen nor cut off."""
        at = at or sample.at
        return {
            row.pid
            for row in sample.instances
            if row.state == "healthy" and row.circuit != "open"
            if (self.gone_since(row.pid) or at + 1) > at
            if not self.frozen(at, at, [row.pid]) and not self.cut(at, at, {row.region})
        }

    # --- versions ---

    def codes_of(self, pid: int) -> set[str]:
        """What code this process ran: by its executions, by those of its version, else by when its version appeared."""
        if pid in self._codes:
            return self._codes[pid]
        versions = {row.version for _, row in self.rows_of(pid)}
        same = {one for other in self._codes for one in self._codes[other] if self._version(other) in versions}
        return same or {fault.code for fault in self.faults if fault.code and any(self._new(fault, one) for one in versions)}

    def version_of(self, code: str) -> str:
        """The version with this code; "" if no request reached it."""
        return next((self._version(pid) for pid, codes in self._codes.items() if code in codes and self._version(pid)), "")

    def withdrawn(self, pid: int, start: float, end: float) -> bool:
        """Whether a rollout had ended for its version in that time, or shortly after: gateways may act before it is shown."""
        version, until = self._version(pid), end + self.slack.learn_s
        rollouts = [one.rollout for one in self.between(start, until) if one.whole and one.rollout]
        return bool(version) and any(version not in (shown.get("stable"), shown.get("canary")) for shown in rollouts)

    def bad_code(self, *variants: str) -> set[str]:
        """The codes of versions that were deployed to behave so."""
        return {fault.code for fault in self.faults if fault.kind == "rollout" and fault.code and variant(fault) in variants}

    def _version(self, pid: int) -> str:
        rows = self.rows_of(pid)
        return rows[0][1].version if rows else ""

    def _new(self, fault: Fault, version: str) -> bool:
        """Whether the version was first seen while the fault deployed it."""
        seen = next((sample.at for sample in self.samples for row in sample.instances if row.version == version), 0.0)
        return fault.began <= seen <= (fault.ended or seen) + self.slack.heal_s


def variant(fault: Fault) -> str:
    """What kind of its kind: `deploy slow` -> slow, a failover's mode."""
    return fault.what.rpartition(" ")[2] or str(fault.detail.get("mode", ""))


def touches_controller(fault: Fault) -> bool:
    return "controller" in fault.kind and "serve_controller" not in fault.kind
