"""Made-up records: a sound one of two hundred seconds, and what tests add to it or break in it."""

from __future__ import annotations

from typing import Any

from tests.campaign.record import Death, Execution, Facts, Fault, InstanceRow, Record, Request, Sample, Size

BEGAN, FAULTS_OVER, END = 1000.0, 1150.0, 1200.0
REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-1")
CONTROLLER, GATEWAYS, PIDS = 10, (11, 12, 13), (101, 102, 103, 104, 105, 106)
KINDS = ("plain", "keyed", "app-get", "app-put", "app-post", "chat")


def instance_row(pid: int, **changes: Any) -> InstanceRow:
    number = pid % 100
    values = {"id": f"instance-{number}", "pid": pid, "state": "healthy", "circuit": "closed", "version": "v1"}
    places = {"region": REGIONS[(number - 1) // 2 % 3], "connections": 0, "active_connections": 0}
    return InstanceRow(**{**values, **places, **changes})


def sound_record() -> Record:
    """Six instances in three regions, requests of every kind, sessions of four turns, and not a single fault."""
    record = Record(Facts(seed=1, seconds=150.0, began=BEGAN, faults_over=FAULTS_OVER, settled=True))
    for number in range(120):
        kind = KINDS[number % len(KINDS)]
        add_request(record, kind, BEGAN + 1 + number, pid=PIDS[number % len(PIDS)])
    for session in range(4):
        for turn in range(1, 5):
            add_turn(record, f"c{session}", turn, BEGAN + 2 + 3 * turn + session, PIDS[session])
    add_request(record, "stream", BEGAN + 9, seconds=2.0, pid=102, first_byte=BEGAN + 9.1)
    for number in range(30):
        add_request(record, "plain", FAULTS_OVER + 10 + number / 10, pid=PIDS[number % len(PIDS)], counted=True)
    record.samples = [sample(BEGAN + step / 2, whole=step % 3 == 0) for step in range(int(END - BEGAN) * 2)]
    held = ((11, "gateway"), (101, "instance"), (CONTROLLER, "controller"))
    moments = [BEGAN + 5 * step for step in range(40)]
    record.sizes = [Size(at, pid, role, 150_000, 40, 12, 1.0) for at in moments for pid, role in held]
    return record


def sample(at: float, whole: bool = False) -> Sample:
    rollout = {"stable": "v1", "canary": None, "percent": 0.0} if whole else {}
    rows = [instance_row(pid) for pid in PIDS]
    return Sample(at=at, took=0.01, instances=rows, gateways=list(GATEWAYS) if whole else [], rollout=rollout, whole=whole)


# --- requests -------------------------------------------------------------------------------------------------------


def add_request(
    record: Record, kind: str, began: float, *, seconds: float = 0.05, pid: int = 101, counted: bool = False, **changes: Any
) -> Request:
    """A request that `pid` ran and answered; its answer is counted."""
    method = {"app-get": "GET", "app-put": "PUT", "ws": "WS"}.get(kind, "POST")
    request = Request(
        id=f"{'n' if counted else 'r'}{len(record.requests) + len(record.counted)}",
        kind=kind,
        method=method,
        repeatable=kind in ("keyed", "app-get", "app-put"),
        client_port=40_000 + len(record.requests),
        began=began,
        first_byte=began + seconds,
        ended=began + seconds,
        outcome="ok",
        status=200,
        instance=f"instance-{pid % 100}",
        pid=pid,
        code="code1",
    )
    vars(request).update(changes)
    (record.counted if counted else record.requests).append(request)
    add_execution(record, request, pid)
    _count(record, request, counted)
    return request


def add_turn(record: Record, session: str, turn: int, began: float, pid: int, **changes: Any) -> Request:
    """A turn of a session, whose process has counted all the turns that it ran."""
    count = 1 + sum(one.conversation == session and one.pid == pid for one in record.executions)
    values = {"conversation": session, "turn": turn, "affinity": "cookie", "count": count, **changes}
    return add_request(record, "turn", began, pid=pid, **values)


def add_failure(
    record: Record, kind: str, began: float, error: str, *, seconds: float = 0.5, ran: int = 0, **changes: Any
) -> Request:
    """A request that failed by this name; `ran`: the process that had begun it."""
    values = {"outcome": "error", "error": error, "status": 502, "code": "", "instance": "", **changes}
    request = add_request(record, kind, began, seconds=seconds, pid=ran, **values)
    request.pid = 0
    if not ran:
        record.executions.pop()
    return request


def add_execution(record: Record, request: Request, pid: int, code: str = "code1") -> None:
    at = request.began + 0.01
    record.executions.append(Execution(request.id, pid, code, request.kind, request.conversation, request.count, at))


def _count(record: Record, request: Request, counted: bool) -> None:
    facts, status = record.facts, str(request.status)
    name = "counted" if counted else "requests"
    facts.sent[name] = facts.sent.get(name, 0) + 1
    if request.outcome in ("ok", "error", "unnamed", "wrong"):
        facts.counted_after[status] = facts.counted_after.get(status, 0) + 1
        if not counted:
            facts.counted_before[status] = facts.counted_before.get(status, 0) + 1


# --- faults and what they do -----------------------------------------------------------------------------------------


def add_fault(record: Record, kind: str, began: float, seconds: float = 0.1, **values: Any) -> Fault:
    values = {"struck": began + 0.05, **values}
    fault = Fault(number=len(record.faults) + 1, kind=kind, began=began, ended=began + seconds, **values)
    record.faults.append(fault)
    return fault


def add_command(
    record: Record, kind: str, began: float, *words: str, status: int = 0, output: str = "done", **values: Any
) -> Fault:
    return add_fault(record, kind, began, 3.0, command=list(words), exit_status=status, output=output, **values)


def kill_instance(record: Record, pid: int, at: float, kind: str = "kill_instance") -> Fault:
    """It is shown for a moment more; after some seconds another process has its name."""
    fault = add_fault(record, kind, at, pids=[pid], instance=f"instance-{pid % 100}")
    die(record, pid, at + 0.1)
    return fault


def die(record: Record, pid: int, at: float, role: str = "instance") -> None:
    record.deaths.append(Death(at, pid, role))
    for one in record.samples:
        one.gateways = [gateway for gateway in one.gateways if gateway != pid or one.at <= at + 3]
        if one.at > at + 5:
            one.instances = [instance_row(pid + 100) if row.pid == pid else row for row in one.instances]
        elif one.at > at + 1:
            one.instances = [row for row in one.instances if row.pid != pid]


def show(record: Record, pid: int, start: float, end: float, **changes: Any) -> None:
    """What the admin port shows of this process in that time."""
    for one in record.samples:
        for row in one.instances:
            if row.pid == pid and start <= one.at <= end:
                vars(row).update(changes)


def fall_ill(record: Record, pid: int, start: float, end: float) -> None:
    """It is shown as unhealthy in that time, and another process gets its requests."""
    show(record, pid, start, end, state="unhealthy")
    other = next(one for one in PIDS if one != pid)
    moved = {one.id for one in record.requests if one.pid == pid and start <= one.began <= end}
    for request in record.requests:
        request.pid = other if request.id in moved else request.pid
    for run in record.executions:
        run.pid = other if run.request in moved else run.pid


def add_instance(record: Record, pid: int, start: float, **changes: Any) -> None:
    for one in record.samples:
        if one.at >= start:
            one.instances.append(instance_row(pid, **changes))


def silence(record: Record, start: float, end: float) -> None:
    """The admin port does not answer in that time."""
    record.samples = [Sample(one.at, away="URLError") if start <= one.at <= end else one for one in record.samples]
