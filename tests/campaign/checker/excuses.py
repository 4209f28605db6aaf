"""What lets a request fail (docs/failures.md), by process where the record names one, and by time."""

from __future__ import annotations

import re

from tests.campaign.checker.history import History
from tests.campaign.checker.verdict import Tolerances
from tests.campaign.record import Fault, Request

REFUSED = ("no_healthy_instance", "circuit_open", "overloaded")  # no instance has begun
FAILED = ("instance_failed", "ws-1011")
TIMED_OUT = ("request_timeout", "ws-1001")
RETRIES = 3  # of a gateway at once, always allowed; more is a matter of retry.budget


def why_broken(history: History, request: Request) -> str:
    """Which kill of its gateway broke this connection, or of its instance after the answer had begun; "": none."""
    slack, counted = history.slack, history.facts.counted_kill
    for fault in history.faults:
        killed = "gateway" in fault.kind and fault.kills and fault.struck and history.may_be_with(fault, request)
        if killed and _around(request, fault.began, fault.struck, slack):
            return "its gateway was killed" + ("" if request.client_port in fault.client_ports else " (by the time)")
    if counted and _around(request, counted["at"] - 0.1, counted["at"], slack):
        return "its gateway was killed (by the time)"
    begun = request.status == 200 and request.first_byte  # what is left of an answer of known length cannot name an error
    if begun and any(history.killer(pid) and _died_under(history, request, pid) for pid in processes(history, request)):
        return "its instance was killed within the answer"
    return ""


def _around(request: Request, listed: float, struck: float, slack: Tolerances) -> bool:
    return request.began <= struck + slack.closing_s and listed - 0.3 <= request.ended <= struck + slack.break_s


def why_failed(history: History, request: Request) -> str:
    """Why this request may have failed by this error; "": it may not."""
    if why := _bad_version(history, request):
        return why
    if request.outcome != "error":
        return ""
    if request.error in FAILED:
        return _why_instance_failed(history, request)
    if request.error in TIMED_OUT:
        return _why_timed_out(history, request)
    return _why_refused(history, request) if request.error in REFUSED else ""


def processes(history: History, request: Request) -> set[int]:
    """The processes that had this request: by the answer, else by the executions and the instances that the error names."""
    if request.pid:
        return {request.pid}
    names = {*re.findall(r"instance-\d+", request.message), request.instance} - {""}
    named = {pid for name in names for pid in history.pids_of(name, request.began, request.ended)}
    return named | {run.pid for run in history.executions.get(request.id, ())}


def _bad_version(history: History, request: Request) -> str:
    """A version that was made to fail answered it."""
    failing = history.bad_code("fails")
    ran = any(run.code in failing for run in history.executions.get(request.id, ()))
    by_name = request.outcome == "error" and request.error in ("agent_error", "ws-1011")
    by_app = request.outcome == "unnamed" and request.kind.startswith("app-")  # the app's own words
    return "its version fails" if ran and (by_name or by_app) else ""


def _why_instance_failed(history: History, request: Request) -> str:
    pids = processes(history, request)
    if request.repeatable and not request.midway:
        return _why_not_repeated(history, request)
    for pid in pids:
        if _died_under(history, request, pid):
            if killer := history.killer(pid):
                return f"its instance was killed ({killer.kind})"
            if history.codes_of(pid) & history.bad_code("dies"):
                return "its version dies"
    if pids and (cut := history.cut(request.began, request.ended, history.regions_of(pids))):
        return f"its region's network was hit ({cut.kind})"
    return ""


def _died_under(history: History, request: Request, pid: int) -> bool:
    """Whether the request was in flight when the process ended: between its kill, if there was one, and its noted death."""
    died, killed = history.deaths.get(pid), history.gone_since(pid)
    if died is None or killed is None or request.began > died + history.slack.ending_s:
        return False
    return killed - history.slack.death_s <= request.ended <= died + history.slack.seen_s


def _why_not_repeated(history: History, request: Request) -> str:
    """A request that may be repeated fails only if no other instance was well, or if the retries were used up."""
    near = history.between(request.ended - 1, request.ended)
    others = processes(history, request)
    if near and any(not history.well(sample) - others for sample in near):
        return "no other instance could take it"
    if request.attempts > history.setting("retry_attempts"):
        return "its retries were used up"
    retried = [one for one in history.requests if one.attempts > 1 and one.began <= request.ended <= one.ended]
    return "more were retried than retry.budget surely allows" if len(retried) >= RETRIES else ""


def _why_timed_out(history: History, request: Request) -> str:
    began, ended, pids = request.began, request.ended, processes(history, request)
    least = min(history.setting("request"), history.setting("idle")) - history.slack.early_s
    if ended - began < least:
        return ""
    frozen = history.frozen(began, ended, pids) if pids else history.frozen_instance(began, ended)
    if frozen:
        return "its instance was frozen" + ("" if pids else " (by the time)")
    if any(True for _ in history.gateway_freezes(request)):
        return "its gateway was frozen"
    if cut := history.cut(began, ended, history.regions_of(pids)):
        return f"its region's network was hit ({cut.kind})"
    return _lost_node(history, request, pids) or _ends_slowly(history, request, pids)


def _ends_slowly(history: History, request: Request, pids: set[int]) -> str:
    """A killed process may take seconds to end on a full machine: its sockets stay open, and nobody answers there."""
    for pid in pids or history.deaths:
        killed, died = history.gone_since(pid), history.deaths.get(pid)
        if killed and died and history.killer(pid) and killed <= request.ended and request.began <= died:
            return "its instance was killed, and took seconds to end" + ("" if pids else " (by the time)")
    return ""


def _lost_node(history: History, request: Request, pids: set[int]) -> str:
    """A process on a node that was killed may be lost without a closed connection."""
    killers: list[Fault] = [one for pid in pids if (one := history.killer(pid)) and one.kind == "kill_node"]
    return "its node was killed" if any(one.struck >= request.began - 1 for one in killers) else ""


def _why_refused(history: History, request: Request) -> str:
    """Refused by name, as at that moment, as far as a gateway could know, no instance was well."""
    samples = history.between(request.ended - history.slack.learn_s, request.ended)
    last = [one for one in samples if one.at <= request.ended][-1:]  # which of those died since?
    none = any(not history.well(one) for one in samples) or any(not history.well(one, request.ended) for one in last)
    return "no instance could take it" if none else ""
