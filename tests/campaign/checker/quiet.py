"""The end: everything is back, nothing is in flight, nothing is left over, and the record itself is whole."""

from __future__ import annotations

from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import History
from tests.campaign.record import COUNTED, REQUESTS, Fault


def check_quiet(history: History, findings: Findings) -> None:
    _whole(history, findings)
    facts = history.facts
    if not facts.settled:
        findings.violation("settled", f"not as before the faults: {facts.unsettled or 'nothing was seen'}", facts.faults_over)
    if problems := facts.status.get("problems"):
        findings.violation("settled", f"`swiftclaw status` shows problems in the end: {problems}", facts.faults_over)
    _zero(history, findings)
    if facts.down_status or "Traceback (most recent" in facts.down_output:
        findings.violation("down", f"exit {facts.down_status} after {facts.down_seconds} s: {facts.down_output[-300:]}")
    for one in facts.orphans:
        findings.violation("orphans", f"left after `down`: {one}")
    for one in facts.files_left:
        findings.violation("files", f"left after `down`: {one}")
    for name, times in facts.tracebacks.items():
        if why := _meant(history, name):
            findings.excuse(f"a traceback in a log: {why}")
        else:
            findings.violation("logs", f"{times} times in a log: {name}")


def _whole(history: History, findings: Findings) -> None:
    """A record in which something is missing proves nothing."""
    record = history.record
    for name, requests in ((REQUESTS, record.requests), (COUNTED, record.counted)):
        sent = record.facts.sent.get(name, len(requests))
        if sent != len(requests):
            findings.violation("has-end", f"{name}: {sent} requests began, {len(requests)} have an end")
    for name, entries in record.facts.entries.items():
        if entries != record.entries.get(name):
            findings.violation("has-end", f"the run wrote {entries} {name}, the record holds {record.entries.get(name, 0)}")
    for what, there in (("request", record.requests), ("execution", record.executions), ("sample", history.samples)):
        if not there:
            findings.violation("has-end", f"the record holds no {what}")
    ids = [one.id for one in history.requests]
    if len(ids) != len(set(ids)):
        findings.violation("has-end", f"{len(ids) - len(set(ids))} requests have two ends")


def _zero(history: History, findings: Findings) -> None:
    """In the last look, some seconds after the last request."""
    if not (history.facts.settled and history.samples):
        return
    last = history.samples[-1]
    if any(request.ended + 1 > last.at for request in history.requests):
        return
    for row in last.instances:
        if row.connections or row.active_connections:
            text = f"{row.id} ({row.pid}) has {row.connections} connections, {row.active_connections} active ones, in the end"
            findings.violation("zero", text, last.at, last.at, processes=[row.pid])


MEANT = {  # what a log may hold: its words, and the variant of the rollout that explains them
    "this version cannot be imported": "import",
    "this version fails": "fails",
}


def _meant(history: History, line: str) -> str:
    """Which fault explains a traceback."""
    for words, what in MEANT.items():
        if words in line and any(fault.what.endswith(what) for fault in history.faults):
            return f"a version that was made to ({what})"
    if "ray.exceptions." in line and any(_ends_a_process(fault) for fault in history.faults):
        return "Ray's own, about a process that ended"
    return ""


def _ends_a_process(fault: Fault) -> bool:
    return fault.kills or fault.kind in ("failover", "rollout", "freeze_gcs", "freeze_node")
