"""What operators were told is true: a command that succeeded has its effect, one that was refused has none."""

from __future__ import annotations

import json

from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import LEAVING, History, variant
from tests.campaign.record import Fault, InstanceRow, Sample

REFUSALS = ("rejected the request", "nothing was changed")
STOPPED = (None, -15, -9, -2, 124, 130)  # it took too long, or the faults were over


def check_commands(history: History, findings: Findings) -> None:
    for fault in history.faults:
        if fault.command:
            _exit(history, findings, fault)
            _rollout(history, findings, fault)
        _drill(history, findings, fault)
    _scaled(history, findings)


def option(command: list[str], name: str) -> str:
    """The value of an option in a command's words; "": it is not there."""
    return command[command.index(name) + 1] if name in command[:-1] else ""


def refused(fault: Fault) -> bool:
    return fault.exit_status == 1 and any(words in fault.output for words in REFUSALS)


def _exit(history: History, findings: Findings, fault: Fault) -> None:
    words = f"swiftclaw {' '.join(fault.command)}"
    stopped = fault.exit_status in STOPPED or (fault.exit_status == 1 and fault.output.rstrip().endswith("interrupted"))
    cut_short = stopped and fault.ended >= history.facts.faults_over - history.slack.end_s > 0
    if cut_short:
        findings.excuse("a command was stopped: the faults were over")
    elif "Traceback (most recent" in fault.output:
        findings.violation("exit", f"{words}: a traceback: {fault.output[-300:]}", fault.began, fault.ended)
    elif stopped:
        findings.violation("exit", f"{words}: did not end in time: {fault.output[-300:]}", fault.began, fault.ended)
    elif fault.exit_status not in (0, 1) or (fault.exit_status and not fault.output.strip() and "verdict" not in fault.detail):
        findings.violation("exit", f"{words}: exit {fault.exit_status}: {fault.output[-300:]}", fault.began, fault.ended)
    elif fault.kind == "kill_node" and fault.exit_status:
        findings.violation("exit", f"`up` after a node was killed failed: {fault.output[-300:]}", fault.began, fault.ended)


def _drill(history: History, findings: Findings, fault: Fault) -> None:
    verdict = str(fault.detail.get("verdict", ""))
    if fault.kind != "failover" or not verdict.startswith("FAILED"):
        return
    others = [one for one in history.faults if one is not fault and one.began <= fault.ended and one.ended >= fault.began - 6]
    if any(one.struck for one in others):
        findings.excuse("a drill failed: another fault was under way")
    else:
        findings.violation("drill", f"{fault.instance} {variant(fault)}: {verdict}", fault.began, fault.ended)


# --- rollouts -------------------------------------------------------------------------------------------------------


def _rollout(history: History, findings: Findings, fault: Fault) -> None:
    what = fault.command[0]
    if what == "deploy" and fault.exit_status == 1:
        _undone(history, findings, fault)
    if fault.exit_status != 0 or what not in ("deploy", "promote", "rollback"):
        return
    now, before = _next_whole(history, fault), _last_whole(history, fault.began)
    if now is None:
        return
    canary = str(fault.detail.get("canary") or (before.rollout.get("canary") if before else "") or "")
    if what == "rollback" and canary:
        if now.rollout.get("canary") == canary or now.rollout.get("stable") == canary:
            _without_effect(findings, fault, f"{canary} is still in the rollout: {now.rollout}", now.at)
        _gone(history, findings, fault, canary)
    elif what == "deploy" and not option(fault.command, "--canary"):
        version = history.version_of(fault.code)
        if version and now.rollout.get("stable") != version:
            _without_effect(findings, fault, f"{version} is not the stable version: {now.rollout}", now.at)
    elif what == "promote" and option(fault.command, "--canary") == "100" and now.rollout.get("stable") != canary != "":
        _without_effect(findings, fault, f"{canary} is not the stable version: {now.rollout}", now.at)


def _without_effect(findings: Findings, fault: Fault, text: str, at: float) -> None:
    findings.violation("effect", f"swiftclaw {' '.join(fault.command)} succeeded, but {text}", fault.began, at)


def _next_whole(history: History, fault: Fault) -> Sample | None:
    """The first whole look after the command, if no other rollout can have changed it by then."""
    look = next((one for one in history.samples if one.whole and one.at > fault.ended), None)
    others = (one for one in history.faults if one is not fault and _changes_versions(one))
    if look is None or any(one.began <= look.at and (one.ended or look.at) >= fault.began for one in others):
        return None
    return look


def _changes_versions(fault: Fault) -> bool:
    return bool(fault.command) and fault.command[0] in ("deploy", "promote", "rollback", "up")


def _last_whole(history: History, moment: float) -> Sample | None:
    return next((one for one in reversed(history.samples) if one.whole and one.at < moment), None)


def _gone(history: History, findings: Findings, fault: Fault, version: str) -> None:
    """A version that was rolled back has no instance that takes requests, once it has drained."""
    since = fault.ended + history.slack.effect_s
    rows = [(one.at, row) for one in history.samples if one.at > since for row in one.instances]
    left = [(at, row) for at, row in rows if row.version == version and row.state == "healthy"]
    again = any(one.code and history.version_of(one.code) == version and one.began > fault.ended for one in history.faults)
    if left and not again:
        at, row = left[0]
        _without_effect(findings, fault, f"{row.id} of {version} is healthy {at - fault.ended:.0f} s later", since)


def _undone(history: History, findings: Findings, fault: Fault) -> None:
    """The code of a deploy that was refused never runs; of one that was rolled back, not for long."""
    until = fault.began if refused(fault) else fault.ended + history.slack.version_s
    if any(one.command[:1] == ["up"] and one.ended >= fault.began for one in history.faults):
        return  # `up` deploys the code that the folder now has
    late = [run for run in history.record.executions if run.code == fault.code and fault.code and run.at > until]
    if late:
        text = f"swiftclaw {' '.join(fault.command)} failed, but its code ran {len(late)} times, first at "
        findings.violation("no-effect", f"{text}{history.after_start(late[0].at)} s", fault.began, late[0].at)


# --- numbers of instances -------------------------------------------------------------------------------------------


def _scaled(history: History, findings: Findings) -> None:
    """The number that was ordered last is the number in force; an order that was cut short may be or not."""
    scales = sorted((one for one in history.faults if one.command[:1] == ["scale"]), key=lambda one: one.ended)
    regions = {row.region for sample in history.samples for row in sample.instances}
    for region in sorted(regions):
        orders = [one for one in scales if option(one.command, "--region") == region]
        possible = {int(history.setting("instances"))}
        for order in orders:
            number = int(option(order.command, "--instances"))
            if order.exit_status == 0:
                at_once = [one for one in orders if one is not order and one.began <= order.ended and one.ended >= order.began]
                possible = {number, *(int(option(one.command, "--instances")) for one in at_once if not refused(one))}
                _in_force(history, findings, order, region, possible, _until(history, order, orders))
            elif not refused(order):
                possible = {*possible, number}
            elif number not in possible:
                _not_in_force(history, findings, order, region, number, _until(history, order, orders))
        _at_last(history, findings, region, possible, orders)


def _until(history: History, order: Fault, orders: list[Fault]) -> float:
    later = [one.began for one in orders if one.ended > order.ended]
    return min([order.ended + history.slack.effect_s, *later])


def numbers(sample: Sample, region: str) -> dict[str, int]:
    """How many instances each version has in the region, those that leave not counted."""
    found: dict[str, int] = {}
    for row in sample.instances:
        if row.region == region and _counts(row):
            found[row.version] = found.get(row.version, 0) + 1
    return found


def _counts(row: InstanceRow) -> bool:
    return row.state not in LEAVING


def _in_force(history: History, findings: Findings, order: Fault, region: str, possible: set[int], until: float) -> None:
    if until < order.ended + history.slack.effect_s:
        return  # another order followed before this one can be judged
    kills = (one for one in history.faults if one.kind == "kill_node" and one.region == region and one.struck)
    if any(one.began <= until and (one.ended or until) >= order.began for one in kills):
        return
    looks = [one for one in history.samples if order.ended <= one.at <= until]
    if looks and not any(possible & ({*numbers(one, region).values()} or {0}) for one in looks):
        seen = sorted({number for one in looks for number in numbers(one, region).values()})
        _without_effect(findings, order, f"{region} has {seen} instances, not {sorted(possible)}", until)


def _not_in_force(history: History, findings: Findings, order: Fault, region: str, number: int, until: float) -> None:
    looks = [one for one in history.samples if order.ended + history.slack.refused_s <= one.at <= until]
    if looks and all(number in numbers(one, region).values() for one in looks):
        words = " ".join(order.command)
        findings.violation(
            "no-effect", f"swiftclaw {words} was refused, but {region} has {number} instances", order.began, until
        )


def _at_last(history: History, findings: Findings, region: str, possible: set[int], orders: list[Fault]) -> None:
    if not history.facts.settled or not history.samples:
        return
    there = numbers(history.samples[-1], region)
    if sum(there.values()) not in possible:
        ordered = [f"{' '.join(one.command)} -> {one.exit_status}" for one in orders]
        text = f"in the end {region} has {json.dumps(there)} instances, not {sorted(possible)}; ordered: {ordered or 'nothing'}"
        rule = "no-effect" if any(refused(one) for one in orders[-1:]) else "effect"
        findings.violation(rule, text, orders[-1].began if orders else 0.0)
