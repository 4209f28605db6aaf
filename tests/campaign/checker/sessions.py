"""A session stays with its home while that can take it, and its home remembers it."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import LEAVING, UNWELL, History
from tests.campaign.record import InstanceRow, Request


def check_sessions(history: History, findings: Findings) -> None:
    conversations: dict[str, list[Request]] = defaultdict(list)
    for request in history.requests:
        if request.conversation:
            conversations[request.conversation].append(request)
    for turns in conversations.values():
        turns.sort(key=lambda one: one.turn)
        answered = [turn for turn in turns if turn.outcome == "ok"]
        _homes(history, findings, answered, [turn for turn in turns if turn.outcome != "ok"])
        _memory(history, findings, answered)


def _homes(history: History, findings: Findings, answered: list[Request], failed: list[Request]) -> None:
    away_from: set[int] = set()  # homes that are still the session's, though it was served elsewhere
    for before, after in pairwise(answered):
        if before.pid == after.pid:
            continue
        away_from |= {pid for turn in failed if turn.turn < after.turn for pid in _placed(history, turn)}
        why = why_moved(history, before, after)
        if not why and after.pid in away_from:
            why = "back at its home, after a request that was served elsewhere once"
        if why_elsewhere(history, before, after):
            away_from.add(before.pid)
        findings.verdict.moves[f"{after.affinity or 'session'}: {why or 'NO CAUSE'}"] += 1
        if not why:
            findings.request(
                "home",
                after,
                f"of session {after.conversation} ({after.affinity}): turn {before.turn} at {_place(before)}, "
                f"turn {after.turn} at {_place(after)}, and its home could have taken it",
                processes=(before.pid, after.pid),
            )


def _placed(history: History, turn: Request) -> set[int]:
    """Where a turn that failed may have given its session a home: the processes that ran it, or whose name the error has."""
    named = history.pids_of(turn.instance, turn.began, turn.ended) if turn.instance else set()
    return {run.pid for run in history.executions.get(turn.id, ())} | named


def _place(turn: Request) -> str:
    return f"{turn.instance or 'an instance'} ({turn.pid}, {turn.code})"


def why_moved(history: History, before: Request, after: Request) -> str:
    """What kept the home from taking the next turn, between the two; "": nothing."""
    return _why_lost(history, before, after) or why_elsewhere(history, before, after)


def _why_lost(history: History, before: Request, after: Request) -> str:
    """For good: the session has another home from then on."""
    pid, start, end = before.pid, before.began - 1, after.ended
    if (gone := history.gone_since(pid)) and gone <= end + 0.5:
        return "its home ended"
    states = {row.state for row in _shown(history, pid, start, end)}
    for state in (*LEAVING, *UNWELL):
        if state in states:
            return f"its home was {state}"
    if history.withdrawn(pid, start, end):
        return "its home's version was replaced or rolled back"
    return "its home was flagged as unhealthy" if _flagged(history, pid, start, end) else ""


def why_elsewhere(history: History, before: Request, after: Request) -> str:
    """For this request only: the session keeps its home."""
    pid, start, end = before.pid, before.began - 1, after.ended
    if any(row.circuit in ("open", "half-open") for row in _shown(history, pid, start, end)):
        return "its home's circuit was open"
    if history.frozen(start - history.slack.breaker_s, end, [pid]):
        return "its home was frozen"
    if history.cut(start, end, history.regions_of([pid]) or {"?"}):
        return "its home's network was hit"
    return "another instance was tried first" if before.attempts > 1 or after.attempts > 1 else ""


def _shown(history: History, pid: int, start: float, end: float) -> list[InstanceRow]:
    return [row for sample in history.between(start, end) for row in sample.instances if row.pid == pid]


def _flagged(history: History, pid: int, start: float, end: float) -> bool:
    """Its health check, or a drill, told of an illness in that time; the Controller needs some checks to see it."""
    return any(
        fault.kind in ("sick", "failover") and pid in fault.pids and fault.began <= end and fault.ended + 4 >= start
        for fault in history.faults
    )


def _memory(history: History, findings: Findings, turns: list[Request]) -> None:
    latest: dict[int, Request] = {}
    for turn in turns:
        before = latest.get(turn.pid)
        latest[turn.pid] = turn
        counted = [run.turn for run in history.executions.get(turn.id, ()) if run.pid == turn.pid]
        if before is not None and turn.count <= before.count:
            findings.request(
                "memory", turn, f"of session {turn.conversation}: process {turn.pid} counted {before.count}, then {turn.count}"
            )
        elif counted and turn.count not in counted:
            findings.request(
                "memory", turn, f"of session {turn.conversation}: the client was told {turn.count}, the agent counted {counted}"
            )
