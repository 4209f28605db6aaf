"""What a campaign writes down: every request, execution, fault and observation, each one line of JSON in the run's folder.

Load, faults and sampler write the record while they run; the checker reads it afterwards and knows nothing else. All moments
are seconds of CLOCK_MONOTONIC, which the processes of one machine share and which no step of the wall clock moves.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

REQUESTS, COUNTED, FAULTS, SAMPLES, DEATHS, SIZES = "requests", "counted", "faults", "samples", "deaths", "sizes"
EXECUTIONS, FACTS, COMMANDS, PLAN = "executions", "facts.json", "commands", "plan.json"


@dataclass
class Request:
    """One request, from the client's side. `repeatable`: by its method, or by an Idempotency-Key."""

    id: str
    kind: str  # plain, keyed, app-get, app-put, app-post, chat, stream, ws, turn, or a misbehaving client's (see load)
    method: str = "POST"
    repeatable: bool = False
    conversation: str = ""  # of a turn: its session, and
    turn: int = 0  # its number in it, from 1
    affinity: str = ""  # of a turn: how the session is named (cookie, named-cookie, header-cookie, named)
    fresh: bool = True  # on a connection of its own
    client_port: int = 0  # the client's side of the connection; 0: not connected
    began: float = 0.0
    first_byte: float = 0.0  # when the response's head was read; 0: never
    ended: float = 0.0
    outcome: str = "hang"  # or: ok, error (named), unnamed (without a name), wrong (not this request's), broken, left
    status: int = 0
    error: str = ""  # of an error: its type, or ws-CODE
    message: str = ""  # of an error: its text; of another outcome: what was seen
    midway: bool = False  # the error arrived after the first part of the answer
    instance: str = ""  # x-swiftclaw-instance
    attempts: int = 1  # x-swiftclaw-attempts
    moved: bool = False  # x-swiftclaw-session-moved was there
    pid: int = 0  # the process that answered, by its own word
    code: str = ""  # the version of the agent's code that answered
    count: int = 0  # of a turn: how many turns of this session that process has counted
    pieces: int = 0
    longest_gap: float = 0.0  # of a stream: the longest silence in it, seconds
    paused: float = 0.0  # how long the client's process did not run meanwhile, seconds: then the machine was at its limit


@dataclass
class Execution:
    """One call of the agent's code, from the agent's side."""

    request: str
    pid: int
    code: str
    kind: str
    conversation: str
    turn: int
    at: float


@dataclass
class Fault:
    """One fault, or one thing an operator did. `pids`: the processes it kills or freezes, all of them."""

    number: int
    kind: str
    began: float
    struck: float = 0.0  # when it took effect; 0: it did not
    ended: float = 0.0
    pids: list[int] = field(default_factory=list)
    instance: str = ""
    region: str = ""
    what: str = ""  # its variant: full, read-only, deploy canary, promote, one-way ...
    code: str = ""  # of a deploy: the version of the code
    skipped: str = ""  # why it did not happen
    client_ports: list[int] = field(default_factory=list)  # of a gateway: its clients at that moment
    counted: dict[str, float] = field(default_factory=dict)  # of a killed Controller: swiftclaw_requests_total by status before
    command: list[str] = field(default_factory=list)
    exit_status: int | None = None
    output: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def freezes(self) -> bool:
        return self.kind.startswith("freeze")

    @property
    def kills(self) -> bool:
        return self.kind.startswith("kill")


@dataclass
class InstanceRow:
    """An instance as the admin API shows it."""

    id: str
    pid: int
    state: str
    circuit: str
    version: str
    region: str
    connections: int
    active_connections: int


@dataclass
class Sample:
    """What the admin port answered. `away`: why it did not; then the rest is empty."""

    at: float
    took: float = 0.0
    away: str = ""
    instances: list[InstanceRow] = field(default_factory=list)
    gateways: list[int] = field(default_factory=list)  # pids, of workers too
    workers: list[tuple[int, int]] = field(default_factory=list)  # (pid, pid of its gateway)
    rollout: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: dict[str, Any] = field(default_factory=dict)
    whole: bool = False  # gateways, rollout, warnings and problems were read too


@dataclass
class Death:
    """A process of the cluster that has ended. `role`: instance, gateway, controller."""

    at: float
    pid: int
    role: str


@dataclass
class Size:
    """What a process of the cluster holds."""

    at: float
    pid: int
    role: str
    rss_kib: int
    files: int  # open file descriptors
    threads: int
    cpu_s: float
    tasks: int = 0  # unfinished asyncio tasks of a gateway or the Controller; 0: not known


@dataclass
class Facts:
    """What is known of the run as a whole; `settings` are those the cluster ran with, in seconds."""

    seed: int = 0
    seconds: float = 0.0
    settings: dict[str, float] = field(default_factory=dict)
    began: float = 0.0  # the load's start
    faults_over: float = 0.0
    settled: bool = False
    unsettled: list[str] = field(default_factory=list)  # what was not as it should be when the wait ended
    settled_after: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)  # requests.jsonl, counted.jsonl: how many requests the load began
    client_lag: float = 0.0  # the most that the load was behind its schedule
    probes_sent: int = 0  # by `swiftclaw test failover`
    counted_before: dict[str, float] = field(default_factory=dict)  # /metrics around the part that is counted, by status
    counted_after: dict[str, float] = field(default_factory=dict)
    counted_kill: dict[str, float] = field(default_factory=dict)  # pid, at: the gateway that was killed in that part
    down_status: int = 0
    down_output: str = ""
    down_seconds: float = 0.0
    orphans: list[str] = field(default_factory=list)  # processes left after `down`
    files_left: list[str] = field(default_factory=list)  # temporary folders and shared memory left after `down`
    tracebacks: dict[str, int] = field(default_factory=dict)  # "log: last line" -> how often
    events: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)  # /api/status in the end
    entries: dict[str, int] = field(default_factory=dict)  # how many the record held of each when the run was over
    machine: str = ""
    commit: str = ""
    date: str = ""


class DamagedRecord(Exception):
    """A file of the record cannot be read."""


class Lines:
    """A file of JSON lines. Threads may write at once; a line is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("a", buffering=1), threading.Lock()

    def write(self, entry: Any) -> None:
        line = json.dumps(asdict(entry))
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


Entry = TypeVar("Entry")


def read(path: Path, kind: type[Entry]) -> Iterator[Entry]:
    """The entries of a file of JSON lines; none if it does not exist. Raises DamagedRecord."""
    if path.exists():
        yield from _parsed(path, lambda line: _entry(json.loads(line), kind))


def _parsed(path: Path, parse: Callable[[str], Entry]) -> Iterator[Entry]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            yield parse(line)
        except (ValueError, TypeError, KeyError):
            raise DamagedRecord(f"{path}, line {number}, is damaged: the record is not whole") from None


def _entry(values: dict[str, Any], kind: type[Entry]) -> Entry:
    if kind is Sample:
        values["instances"] = [InstanceRow(**row) for row in values["instances"]]
    return kind(**values)


def write_facts(folder: Path, facts: Facts) -> None:
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=1))


@dataclass
class Record:
    """All of one run."""

    facts: Facts = field(default_factory=Facts)
    requests: list[Request] = field(default_factory=list)
    counted: list[Request] = field(default_factory=list)  # those of the part without faults whose counts are compared
    executions: list[Execution] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    @property
    def entries(self) -> dict[str, int]:
        """How many it holds of each."""
        return {one.name: len(getattr(self, one.name)) for one in fields(self) if one.name != "facts"}

    @classmethod
    def from_folder(cls, folder: Path) -> Record:
        """Raises DamagedRecord."""
        file = folder / FACTS
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DamagedRecord(f"{file} cannot be read ({error}): this is no record of a run that is over") from None
        names = {one.name for one in fields(Facts)}
        try:
            return cls._of(folder, Facts(**{name: value for name, value in values.items() if name in names}))
        except OSError as error:
            raise DamagedRecord(f"{folder} is not a whole record: {error}") from None

    @classmethod
    def _of(cls, folder: Path, facts: Facts) -> Record:
        return cls(
            facts,
            requests=list(read(folder / f"{REQUESTS}.jsonl", Request)),
            counted=list(read(folder / f"{COUNTED}.jsonl", Request)),
            executions=[one for file in sorted((folder / EXECUTIONS).iterdir()) for one in _parsed(file, execution)],
            faults=list(read(folder / f"{FAULTS}.jsonl", Fault)),
            samples=list(read(folder / f"{SAMPLES}.jsonl", Sample)),
            deaths=list(read(folder / f"{DEATHS}.jsonl", Death)),
            sizes=list(read(folder / f"{SIZES}.jsonl", Size)),
        )


def execution(line: str) -> Execution:
    """One line of an agent's log: request, pid, code, kind, conversation, turn, moment; "-": no conversation."""
    request, pid, code, kind, conversation, turn, at = line.split(" ")
    return Execution(request, int(pid), code, kind, "" if conversation == "-" else conversation, int(turn), float(at))
