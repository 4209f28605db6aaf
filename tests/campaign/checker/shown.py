"""What the admin port shows of instances is so: who is ill is shown as ill and spared, who works is shown at work."""

from __future__ import annotations

from collections import defaultdict

from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import LEAVING, UNWELL, History, touches_controller
from tests.campaign.record import Fault, Request

LONG_S = 1.8  # a request that takes as long is in flight while somebody looks
SEVERAL = 10  # requests: one or two that are not shown say nothing


def check_shown(history: History, findings: Findings) -> None:
    for fault in history.faults:
        if fault.kind == "sick" and fault.struck:
            _noticed(history, findings, fault)
    _spared(history, findings)
    _in_flight(history, findings)


def _noticed(history: History, findings: Findings, fault: Fault) -> None:
    """An illness of several seconds is shown, if its process lived and the Controller could look at it."""
    pids, until = set(fault.pids), fault.ended + history.slack.learn_s
    blind = any(one.away for one in history.record.samples if fault.began - 1 <= one.at <= until)
    paused = any(
        touches_controller(one) and one.struck and one.began <= until and one.ended >= fault.began - 5 for one in history.faults
    )
    gone = any(pid in history.deaths and history.deaths[pid] <= until for pid in pids) or history.frozen(
        fault.began - 2, until, pids
    )
    looks = [row for sample in history.between(fault.began, until) for row in sample.instances if row.pid in pids]
    if blind or paused or gone or fault.ended - fault.struck < 5 or not looks:
        return
    if not any(row.state in (*UNWELL, *LEAVING) for row in looks):
        text = f"{fault.instance} reported unhealthy for {fault.ended - fault.struck:.1f} s, and was shown as healthy"
        findings.violation("noticed", text, fault.began, fault.ended, processes=pids)


def _spared(history: History, findings: Findings) -> None:
    """No request that begins while its instance is shown as unhealthy runs there; gateways learn of it in a moment."""
    spans = _unhealthy_spans(history)
    requests = {request.id: request for request in history.requests}
    for run in history.record.executions:
        request = requests.get(run.request)
        for start, end in spans.get(run.pid, ()):
            if request and start + history.slack.learn_s < request.began < run.at < end and not _blind(history, request, start):
                text = f"ran on process {run.pid}, shown as unhealthy for {request.began - start:.1f} s when it began"
                findings.request("in-rotation", request, text, processes=[run.pid])


def _unhealthy_spans(history: History) -> dict[int, list[tuple[float, float]]]:
    """By process: from the first to the last of the looks in a row that show it as unhealthy."""
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    before: dict[int, str] = {}
    for sample in history.samples:
        for row in sample.instances:
            if row.state in UNWELL:
                if before.get(row.pid) in UNWELL and spans[row.pid]:
                    spans[row.pid][-1] = spans[row.pid][-1][0], sample.at
                else:
                    spans[row.pid].append((sample.at, sample.at))
            before[row.pid] = row.state
    return spans


def _blind(history: History, request: Request, since: float) -> bool:
    """Whether a gateway may not have learnt of it: it was frozen, it started, or there was no Controller to tell it."""
    around = (
        one
        for one in history.faults
        if one.struck and one.began <= request.began and one.ended + history.slack.admin_s >= since
    )
    return any(touches_controller(one) or "gateway" in one.kind or one.kind.startswith("kill_node") for one in around)


def _in_flight(history: History, findings: Findings) -> None:
    """A look well within a long request shows its process with active connections; a few that do not are a matter of timing."""
    unseen, looks = [], 0
    for request in history.requests:
        if request.outcome != "ok" or not request.pid or request.ended - (request.first_byte or request.ended) < LONG_S:
            continue
        for sample in history.between(request.first_byte + 1.0, request.ended - 0.5)[1:-1]:
            row = next((one for one in sample.instances if one.pid == request.pid), None)
            if row is not None and request.first_byte + 1.0 <= sample.at <= request.ended - 0.5:
                looks += 1
                if not row.active_connections:
                    unseen.append(request)
    if len({one.id for one in unseen}) >= SEVERAL and len(unseen) > looks * history.slack.unseen_share:
        text = f"in {len(unseen)} of {looks} looks an instance is shown without active connections, with a request in flight"
        findings.violation("in-flight", text, unseen[0].began, unseen[-1].ended)
