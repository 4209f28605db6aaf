"""Every request ends within its time, with an answer, or with an error that something excuses."""

from __future__ import annotations

from tests.campaign.checker.excuses import why_broken, why_failed
from tests.campaign.checker.findings import Findings, saw
from tests.campaign.checker.history import MISBEHAVING, History
from tests.campaign.record import Request

FLOWING = ("stream", "ws")  # their time is that to the first byte; then every silence has one of its own


def check_answers(history: History, findings: Findings) -> None:
    for request in history.requests:
        if request.outcome == "wrong":
            findings.request("right-answer", request, f"got an answer that is not its own: {request.message[:200]}")
        elif request.kind not in MISBEHAVING:
            _time(history, findings, request)
            _outcome(history, findings, request)


def _time(history: History, findings: Findings, request: Request) -> None:
    limit, took = history.setting("request") + history.late_s, _took(request) - request.paused
    frozen = sum(_overlap(request, one.struck, one.ended + 0.5) for one in history.gateway_freezes(request))
    if request.outcome == "hang" or took > limit + frozen:
        findings.request("in-time", request, f"took {took:.1f} s of {limit - history.late_s:g}: {saw(request)}")
    elif took > limit:
        findings.excuse("late: its gateway was frozen")
    if request.longest_gap > history.setting("idle") + history.late_s + frozen:
        findings.request("in-time", request, f"was silent for {request.longest_gap:.1f} s within its stream")


def _took(request: Request) -> float:
    return (request.first_byte if request.kind in FLOWING and request.first_byte else request.ended) - request.began


def _overlap(request: Request, start: float, end: float) -> float:
    return max(0.0, min(request.ended, end) - max(request.began, start))


def _outcome(history: History, findings: Findings, request: Request) -> None:
    if request.outcome in ("ok", "hang"):
        return
    if request.outcome == "broken":
        why, rule = why_broken(history, request), "named"
    else:
        why, rule = why_failed(history, request), "may-fail" if request.outcome == "error" else "named"
    if why:
        findings.excuse(f"{request.error or request.outcome}: {why}")
    elif request.error in ("request_timeout", "ws-1001") and too_early(history, request):
        findings.request("not-early", request, f"was given up: {saw(request)}")
    else:
        findings.request(rule, request, saw(request), processes=[run.pid for run in history.executions.get(request.id, ())])


def too_early(history: History, request: Request) -> bool:
    """Whether neither its time nor that of a silence can have been over."""
    least = min(history.setting("request"), history.setting("idle")) - history.slack.early_s
    return request.ended - request.began < least
