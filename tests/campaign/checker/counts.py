"""What /metrics counts is what clients saw: exactly where nothing but a gateway dies, and over all lives of the Controller."""

from __future__ import annotations

from collections import Counter

from tests.campaign.checker.commands import option
from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import MISBEHAVING, History, touches_controller
from tests.campaign.record import Request

PROBES_PER_S = 50.0  # of `swiftclaw test failover`, unless --rate says otherwise
LAST_WORD_S = 0.7  # from a WebSocket's last message to its end
UNANSWERED = ("broken", "hang", "left")


def check_counts(history: History, findings: Findings) -> None:
    facts = history.facts
    if not facts.counted_after:
        return
    _exactly(history, findings)
    _lives(history, findings)


def _exactly(history: History, findings: Findings) -> None:
    """By status; what got no answer, or another one midway, may be counted under any status, or not at all."""
    facts, requests = history.facts, history.record.counted
    unsure = sum(_unsure(one) or _unnoticed(one, facts.counted_kill) for one in requests)
    answered = Counter(str(one.status) for one in requests if not (_unsure(one) or _unnoticed(one, facts.counted_kill)))
    counted = Counter({code: round(n - facts.counted_before.get(code, 0)) for code, n in facts.counted_after.items()})
    start = facts.counted_kill.get("at", 0.0)
    missing = {code: (counted[code], number) for code, number in answered.items() if counted[code] < number}
    if missing:
        text = ", ".join(f"{code}: {there} of {number}" for code, (there, number) in sorted(missing.items()))
        findings.violation("counts", f"/metrics has lost requests that clients saw answered ({text})", start)
    if (more := counted.total() - answered.total()) > unsure:
        text = f"/metrics counts {more} requests more than clients saw answered; at most {unsure} could be"
        findings.violation("counts", f"{text} ({dict(counted)}, clients {dict(answered)})", start)


def _unsure(request: Request) -> bool:
    return request.outcome in UNANSWERED or request.midway or request.kind in MISBEHAVING


def _unnoticed(request: Request, kill: dict[str, float]) -> bool:
    """A WebSocket whose client had its last message and did not notice that the gateway was killed then."""
    return request.kind == "ws" and bool(kill) and request.ended - LAST_WORD_S <= kill["at"] <= request.ended


def _lives(history: History, findings: Findings) -> None:
    """Each life of the Controller begins at zero; what was counted between the last reading and its death may be missing."""
    facts, slack = history.facts, history.slack
    kills = [one for one in history.faults if touches_controller(one) and one.kills and one.struck]
    deaths = [
        death for death in history.record.deaths if death.role == "controller" and death.at <= (facts.faults_over or death.at)
    ]
    readings = [one.counted for one in kills if one.counted]
    if len(deaths) > len(readings) or len(kills) > len(readings):
        findings.excuse("the counts over all lives: one of them was not read before it ended")
        return
    counted = sum(sum(reading.values()) for reading in readings) + sum(facts.counted_before.values())
    unsure = sum(_unsure(one) for one in history.record.requests) + _probes(history)
    answered = sum(not _unsure(one) for one in history.record.requests) + facts.probes_sent
    missing = slack.per_life_requests * len(readings)
    if not answered - missing <= counted <= answered + unsure + missing:
        findings.violation(
            "lives",
            f"/metrics counted {counted:.0f} in {len(readings) + 1} lives of the Controller; "
            f"clients saw {answered} answers, and {unsure} requests without a sure one",
        )


def _probes(history: History) -> int:
    """How many requests drills may have sent of which there is no report: they were stopped with the faults."""
    silent = (one for one in history.faults if one.kind == "failover" and one.command and "requests" not in one.detail)
    return round(sum((one.ended - one.began) * float(option(one.command, "--rate") or PROBES_PER_S) for one in silent))
