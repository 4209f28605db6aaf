"""Which instances crash again and again, and when may the next process of each start?

Ray Serve replaces a crashed replica at once, for ever. So a new process asks here before it loads the agent's code
(`request_start`) and waits as long as policies/lifecycle/crash_backoff.py demands, while Serve sees it starting. Each of an
app's instances is a `CrashSlot`, which its processes fill one after the other: a new one takes the free slot that is due first.
Sync; `now` is in monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from cluster.fleet.registry import InstanceRecord, Registry, lowest_free
from cluster.messages import StartPermit, StartRequest
from policies.lifecycle.crash_backoff import CrashBackoff

LOOP = 2  # crashes in a row, from which on the instance is shown as crashing


@dataclass
class CrashSlot:
    """One instance of an app, across its processes."""

    app: str
    agent: str
    version: str
    region: str
    id: str = ""  # its name; "": none yet
    crashes: int = 0  # in a row, each soon after the start
    due: float = 0.0  # when the next process may start
    reason: str = ""  # of the last crash, if it is known

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.agent, self.version, self.region, self.id)

    def describe(self, now: float) -> str:
        because = f" ({self.reason})" if self.reason else ""
        next_start = f"it starts again in {self.due - now:.0f} s" if self.due > now else "it is starting again"
        return f"crashed {self.crashes} times in a row soon after its start{because}: {next_start}"


@dataclass
class _Process:
    slot: CrashSlot
    started_at: float | None  # None: it waits for its permit
    stopping: bool = False


class CrashLoops:
    """Keeps the slots of all apps. `on_crash` is called for each crash that delays the next start."""

    def __init__(
        self,
        registry: Registry,
        backoff: CrashBackoff | None = None,
        on_crash: Callable[[CrashSlot, float], None] = lambda slot, delay_s: None,
    ) -> None:
        self._registry, self._backoff, self._on_crash = registry, backoff or CrashBackoff(), on_crash
        self._free: list[CrashSlot] = []
        self._starting: dict[str, _Process] = {}  # by replica: not registered yet
        self._running: dict[str, _Process] = {}  # by replica: registered

    # --- what processes report --------------------------------------------------------------------------------------

    def is_new(self, replica: str) -> bool:
        return replica not in self._starting and replica not in self._running

    def retain(self, app: str, alive: Collection[str], now: float) -> None:
        """`alive`: the replicas of the app that exist. Those that were starting and do not exist any more have crashed."""
        for replica in [one for one, process in self._starting.items() if process.slot.app == app and one not in alive]:
            self._free_slot(self._starting.pop(replica), "", now)

    def request_start(self, request: StartRequest, now: float) -> StartPermit:
        """How long this process has to wait; 0: it starts now."""
        process = self._starting.get(request.replica)
        if process is None:
            process = self._starting[request.replica] = _Process(self._take_slot(request, now), None)
        wait_s = max(0.0, process.slot.due - now)
        if not wait_s and process.started_at is None:
            process.started_at = now
        return StartPermit(wait_s, process.slot.crashes)

    def failed(self, replica: str, reason: str, now: float) -> None:
        """The process gave up while starting."""
        process = self._starting.pop(replica, None)
        if process is not None:
            self._free_slot(process, reason, now)

    def stopped(self, replica: str) -> None:
        """The process was stopped on purpose: what happens to it now is no crash."""
        self._starting.pop(replica, None)
        if replica in self._running:
            self._running[replica].stopping = True

    def name_of(self, replica: str) -> str | None:
        """The name that the replica's slot had before."""
        process = self._starting.get(replica)
        return process.slot.id or None if process else None

    def reserved(self, agent: str) -> set[str]:
        """The names of the agent's crashing instances."""
        return {slot.id for slot in self._slots() if slot.agent == agent and slot.crashes >= LOOP and slot.id}

    # --- what the Controller learns ---------------------------------------------------------------------------------

    def sync(self, now: float) -> None:
        """Compare with the registry: which processes have registered, which are gone?"""
        records = {record.registration.replica: record for record in self._registry}
        for replica in [replica for replica in self._running if replica not in records]:
            process = self._running.pop(replica)
            if not process.stopping:
                self._free_slot(process, "", now)
        for replica, record in records.items():
            process = self._running.get(replica) or self._registered(replica, record, now)
            process.stopping |= record.draining

    def keep(self, replicas: Mapping[str, int]) -> None:
        """Forget the slots of apps that are not desired any more, and those that are too many. `replicas`: by app."""
        self._starting = {name: one for name, one in self._starting.items() if one.slot.app in replicas}
        for app in {slot.app for slot in self._free}:
            taken = sum(one.slot.app == app for one in [*self._starting.values(), *self._running.values()] if not one.stopping)
            free = sorted((slot for slot in self._free if slot.app == app), key=lambda slot: -slot.crashes)
            kept = free[: max(0, replicas.get(app, 0) - taken)]
            self._free = [slot for slot in self._free if slot.app != app] + kept

    def reset(self) -> None:
        """Let everything start at once: an operator has changed something."""
        for slot in [*self._slots(), *(process.slot for process in self._running.values())]:
            slot.crashes, slot.due = 0, 0.0

    # --- what operators see -----------------------------------------------------------------------------------------

    def loops(self) -> list[CrashSlot]:
        """The instances that have crashed repeatedly and do not run now."""
        return sorted((slot for slot in self._slots() if slot.crashes >= LOOP), key=lambda slot: slot.key)

    def crashes(self, agent: str, version: str, now: float) -> int:
        """The most crashes in a row of an instance of that version; a process that runs stably has ended its row."""
        rows = [slot.crashes for slot in self._slots() if (slot.agent, slot.version) == (agent, version)]
        for process in self._running.values():
            slot, ran_s = process.slot, now - (process.started_at or now)
            if (slot.agent, slot.version) == (agent, version) and ran_s < self._backoff.stable_s:
                rows.append(slot.crashes)
        return max(rows, default=0)

    def starting(self, app: str) -> int:
        """How many processes of the app exist that are not registered yet."""
        return sum(process.slot.app == app for process in self._starting.values())

    def warnings(self, now: float) -> list[str]:
        return [f"{slot.id} of {slot.agent} {slot.version} in {slot.region} {slot.describe(now)}" for slot in self.loops()]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _slots(self) -> Iterator[CrashSlot]:
        yield from self._free
        yield from (process.slot for process in self._starting.values())

    def _take_slot(self, request: StartRequest, now: float) -> CrashSlot:
        free = [slot for slot in self._free if slot.app == request.app]
        if free:
            slot = min(free, key=lambda slot: slot.due)
            self._free.remove(slot)
            return slot
        due = now + request.wait_s if request.wait_s else 0.0
        return CrashSlot(request.app, request.agent, request.version, request.region, crashes=request.crashes, due=due)

    def _registered(self, replica: str, record: InstanceRecord, now: float) -> _Process:
        starting, new = self._starting.pop(replica, None), record.registration
        slot = starting.slot if starting else CrashSlot(new.app, new.agent, new.version, new.region, crashes=new.crashes)
        slot.id = record.id
        process = self._running[replica] = _Process(slot, (starting.started_at if starting else None) or now)
        return process

    def _free_slot(self, process: _Process, reason: str, now: float) -> None:
        slot = process.slot
        self._free.append(slot)
        if process.started_at is None:  # it has waited only
            return
        slot.crashes = self._backoff.count(slot.crashes, now - process.started_at)
        delay_s = self._backoff.delay_s(slot.crashes)
        slot.due, slot.reason = now + delay_s, reason
        if slot.crashes >= LOOP:
            slot.id = slot.id or lowest_free(self._names(slot.agent))
            self._on_crash(slot, delay_s)

    def _names(self, agent: str) -> Iterable[str]:
        return {*(record.id for record in self._registry.of(agent)), *self.reserved(agent)} - {""}
