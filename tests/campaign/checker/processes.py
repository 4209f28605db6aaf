"""No process ends, and no instance falls ill, unless a fault touched it; and the admin port tells the truth of them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import LEAVING, UNWELL, History, touches_controller, variant
from tests.campaign.record import Death, InstanceRow

BAD = ("unwell", "fails", "slow", "dies", "import")


def check_processes(history: History, findings: Findings) -> None:
    for death in history.record.deaths:
        if not _asked_for(history, death):
            findings.violation(
                "alive", f"{death.role} {death.pid} ended, and nothing had ended it", death.at, death.at, processes=[death.pid]
            )
    _health(history, findings)
    _admin(history, findings)
    _dead_shown(history, findings)


def _asked_for(history: History, death: Death) -> bool:
    pid = death.pid
    if history.killer(pid) or pid == history.facts.counted_kill.get("pid"):
        return True
    if death.role != "instance":
        return history.is_orphan(pid)
    rows = history.rows_of(pid)
    never_ready = bool(rows) and all(row.state == "starting" for _, row in rows)
    bad = history.codes_of(pid) & history.bad_code("dies", "unwell", "import")
    return history.left(pid) or _withdrawn(history, pid) or bool(bad and ("dies" in _variants(history, bad) or never_ready))


def _withdrawn(history: History, pid: int) -> bool:
    """Whether its version was deployed and given up before all its instances were healthy: then it had no traffic to drain."""
    first = min((at for at, _ in history.rows_of(pid)), default=0.0)
    died = history.deaths.get(pid, 0.0)
    return any(
        fault.kind == "rollout" and fault.exit_status == 1 and fault.began <= first
        and (fault.ended or died) - history.slack.effect_s <= died <= (fault.ended or died) + history.slack.heal_s
        for fault in history.faults
    )  # fmt: skip


def _variants(history: History, codes: set[str]) -> set[str]:
    return {variant(fault) for fault in history.faults if fault.code in codes}


def _health(history: History, findings: Findings) -> None:
    reported: set[int] = set()
    for sample in history.samples:
        for row in sample.instances:
            open_circuit = row.circuit in ("open", "half-open")
            if row.pid in reported or not (open_circuit or row.state in UNWELL):
                continue
            if not _touched(history, row, sample.at):
                reported.add(row.pid)
                text = f"{row.id} ({row.pid}) is {row.state}, circuit {row.circuit}, and no fault has touched it"
                findings.violation("healthy", text, sample.at, sample.at, processes=[row.pid])


def _touched(history: History, row: InstanceRow, at: float) -> bool:
    """Whether a fault explains the instance's state at that moment."""
    slack = history.slack
    if (history.gone_since(row.pid) or at + 2) <= at + 1:
        return True
    if history.codes_of(row.pid) & history.bad_code(*BAD):
        return True
    if history.cut(at - slack.heal_s, at, {row.region}):
        return True
    for fault in history.faults:
        if fault.began <= at and fault.ended + slack.heal_s >= at:
            if row.pid in fault.pids or (fault.kind == "failover" and fault.instance == row.id):
                return True
            if fault.kind == "freeze_gateway" and row.state not in UNWELL:
                return True  # what it found waiting looked slow to it
    return False


def _admin(history: History, findings: Findings) -> None:
    """Spans without an answer of the admin port, each explained by the Controller's death or freeze."""
    since = 0.0
    for sample in sorted(history.record.samples, key=lambda one: one.at):
        if sample.away:
            since = since or sample.at
            continue
        if since and sample.at - since > history.slack.admin_pause_s:
            _silence(history, findings, since, sample.at)
        since = 0.0


def _silence(history: History, findings: Findings, start: float, end: float) -> None:
    for fault in history.faults:
        if touches_controller(fault) and fault.struck and fault.struck <= start + 1:
            over = fault.struck if fault.kills else fault.ended
            if over + history.slack.admin_s >= end:
                findings.excuse("the admin port did not answer: the Controller was killed or frozen")
                return
    findings.violation("admin", f"the admin port did not answer for {end - start:.1f} s", start, end)


def _dead_shown(history: History, findings: Findings) -> None:
    """A dead process may be shown for some seconds, longer when the Controller was away and has to learn of it."""
    for pid, died in history.deaths.items():
        away = (one.at for one in history.record.samples if one.away and died - 1 <= one.at <= died + history.slack.admin_s)
        allowed = max([died, *away]) + history.slack.dead_shown_s
        last = max(_last_shown(history, pid), default=0.0)
        if last > allowed:
            text = f"process {pid} is shown as running {last - died:.1f} s after it ended"
            findings.violation("status", text, died, last, processes=[pid])


def _last_shown(history: History, pid: int) -> Iterator[float]:
    """When the process was shown as an instance that may take requests, or as a gateway."""
    yield from (at for at, row in history.rows_of(pid) if row.state not in (*LEAVING, *UNWELL))
    yield from (one.at for one in history.samples if pid in one.gateways)
