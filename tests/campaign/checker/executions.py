"""What ran: a request that is not repeatable at most once, whoever its client was."""

from __future__ import annotations

from collections import Counter

from tests.campaign.checker.excuses import REFUSED
from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import MISBEHAVING, History
from tests.campaign.record import Execution, Request


def check_executions(history: History, findings: Findings) -> None:
    for request in history.requests:
        runs = history.executions.get(request.id, [])
        pids = [run.pid for run in runs]
        if request.outcome == "ok" and (request.pid or request.kind not in MISBEHAVING) and request.pid not in pids:
            findings.request("who-ran", request, f"was answered by {request.pid}; it ran on {pids or 'none'}", processes=pids)
        if request.repeatable:
            _repeats(history, findings, request, pids)
        elif len(runs) > 1:
            findings.request("once", request, f"ran {len(runs)} times: {_times(history, runs)}", processes=pids)
        if runs and request.error in REFUSED and not request.midway and not request.repeatable:
            findings.request("refused-not-run", request, f"was refused as {request.error}, and ran on {pids}", processes=pids)


def _repeats(history: History, findings: Findings, request: Request, pids: list[int]) -> None:
    most = 1 + int(history.setting("retry_attempts"))
    twice = [pid for pid, times in Counter(pids).items() if times > 1]
    if twice or len(pids) > most:
        findings.request("repeats", request, f"ran {len(pids)} times, on {pids}", processes=pids)
    elif len(pids) > 1:
        findings.excuse("repeatable, and ran more than once")


def _times(history: History, runs: list[Execution]) -> str:
    return ", ".join(f"{run.pid} at {history.after_start(run.at)} s" for run in runs)
