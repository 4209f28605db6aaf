"""What a run came to: figures and violations, as JSON and in words. Alike violations are one line with a number."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.campaign.checker import RULES, Verdict, Violation
from tests.campaign.record import Record, Request, Size

TEXT, JSON = "report.txt", "report.json"
SHOWN_FAULTS = 8
WARM_S = 30.0  # of a process's life, before its memory is compared


def write_report(folder: Path, record: Record, verdict: Verdict) -> str:
    """Put report.txt and report.json into the run's folder; the text."""
    values, text = figures(record, verdict), in_words(record, verdict)
    (folder / JSON).write_text(json.dumps({**values, "violations": [asdict(one) for one in verdict.violations]}, indent=1))
    (folder / TEXT).write_text(text + "\n")
    return text


def figures(record: Record, verdict: Verdict) -> dict[str, Any]:
    facts, requests = record.facts, [*record.requests, *record.counted]
    broken = Counter(violation.rule for violation in verdict.violations)
    struck = [fault for fault in record.faults if fault.struck]
    return {
        "seed": facts.seed,
        "seconds": facts.seconds,
        "rate": facts.settings.get("rate"),
        "slack": facts.settings.get("slack"),
        "date": facts.date,
        "machine": facts.machine,
        "commit": facts.commit,
        "requests": len(requests),
        "answered": sum(one.outcome == "ok" for one in requests),
        "outcomes": dict(Counter(one.error or one.outcome for one in requests)),
        "kinds": dict(Counter(one.kind for one in requests)),
        "excused": dict(verdict.excused.most_common()),
        "faults": len(struck),
        "faults_by_kind": dict(Counter(one.kind for one in struck).most_common()),
        "skipped": dict(Counter(one.kind for one in record.faults if not one.struck)),
        "double_executions": broken["once"],
        "sessions": len({one.conversation for one in requests if one.conversation}),
        "sessions_moved": sum(verdict.moves.values()),
        "sessions_moved_without_cause": broken["home"],
        "moves": dict(verdict.moves.most_common()),
        "settled_after_s": facts.settled_after if facts.settled else None,
        "latency_ms": _latency(requests),
        "client_lag_s": facts.client_lag,
        "memory_mib": _memory(record.sizes),
        "violations_by_rule": dict(broken),
    }


def _latency(requests: list[Request]) -> dict[str, float]:
    """To the first byte, of what was answered."""
    took = sorted(1000 * ((one.first_byte or one.ended) - one.began) for one in requests if one.outcome == "ok")
    if not took:
        return {}
    return {"p50": round(took[len(took) // 2], 1), "p99": round(took[len(took) * 99 // 100], 1), "most": round(took[-1], 1)}


def _memory(sizes: list[Size]) -> dict[str, list[float]]:
    """By role: of the process that lived longest, when it was warm and at last."""
    lives: dict[int, list[Size]] = defaultdict(list)
    for size in sizes:
        lives[size.pid].append(size)
    found: dict[str, tuple[float, list[float]]] = {}
    for life in lives.values():
        first, last = life[0], life[-1]
        warm = next((one for one in life if one.at >= first.at + WARM_S), last)
        if last.at - first.at > found.get(first.role, (-1.0, []))[0]:
            found[first.role] = last.at - first.at, [round(one.rss_kib / 1024, 1) for one in (warm, last)]
    return {role: ends for role, (_, ends) in found.items()}


# --- in words ---------------------------------------------------------------------------------------------------------


def in_words(record: Record, verdict: Verdict) -> str:
    values = figures(record, verdict)
    latency, memory = values["latency_ms"], values["memory_mib"]
    settled = values["settled_after_s"]
    grown = (f"{role} {first:g} -> {last:g} MiB" for role, (first, last) in memory.items())
    lines = [
        f"seed {values['seed']}, {values['seconds']:g} s of faults; {values['date']}, {values['machine']}, {values['commit']}",
        f"requests   {values['requests']:,}, answered {values['answered']:,}; {_times(values['outcomes'])}",
        f"faults     {values['faults']} took effect: {_times(values['faults_by_kind'])}",
        f"skipped    {_times(values['skipped']) or 'none'}",
        f"excused    {_times(values['excused']) or 'nothing'}",
        f"executions {values['double_executions']} requests ran twice that must not",
        f"sessions   {values['sessions']:,}, {values['sessions_moved']} moved, "
        f"{values['sessions_moved_without_cause']} of them without cause: {_times(values['moves']) or 'none'}",
        f"settled    {f'after {settled:g} s' if settled is not None else f'NOT: {record.facts.unsettled}'}",
        f"latency    p50 {latency.get('p50', 0):g} ms, p99 {latency.get('p99', 0):g} ms, most {latency.get('most', 0):g} ms; "
        f"the load was at most {values['client_lag_s']:g} s late",
        f"memory     {', '.join(grown) or 'not recorded'}",
        "",
        *(_violations(record.facts.seed, verdict.violations) or ["no violation"]),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _times(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _violations(seed: int, violations: list[Violation]) -> list[str]:
    lines = [f"{len(violations)} VIOLATIONS of {len({one.rule for one in violations})} rules"] if violations else []
    for alike in group(violations):
        first = alike[0]
        times = f" ({len(alike)} times)" if len(alike) > 1 else ""
        lines += ["", f"[{first.rule}] {RULES[first.rule]}{times}", f"  seed {seed}, at {first.at} s: {first.text}"]
        if first.client:
            lines.append(f"  the client saw: {first.client}")
        if first.processes:
            lines.append(f"  processes: {', '.join(map(str, first.processes))}")
        lines.append(f"  faults around it: {_some(first.faults)}")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_FAULTS} more" if len(names) > SHOWN_FAULTS else ""
    return (", ".join(names[:SHOWN_FAULTS]) or "none") + more


def group(violations: list[Violation]) -> list[list[Violation]]:
    """Those of one rule whose words differ in names and numbers only; the largest group first."""
    groups: dict[tuple[str, str], list[Violation]] = defaultdict(list)
    for one in violations:
        groups[one.rule, re.sub(r"\d+(\.\d+)?", "#", one.text)[:80]].append(one)
    return sorted(groups.values(), key=len, reverse=True)
