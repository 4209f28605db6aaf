"""What the probes of a failover test saw, as figures and a verdict. Pure; times in seconds since the take-away.

A failure is unavoidable when the request was in flight on an instance that was killed (it may have been begun, so nobody may
send it again) or when nobody else was there to answer; any other one after the take-away could have been saved. Refusals
by a limit (rate_limited, overloaded) are the limit's doing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swiftclaw.cli.failover.probes import Probe

BACK_WITHIN_S = 60.0  # after its process has ended, or after the end of being unhealthy
DRAIN_WITHIN_S = 660.0  # for its requests in flight: a minute more than the default drainTimeout
OUT_WITHIN_S = 5.0  # an instance that gets new requests for longer than this was not taken away
NOTICE_S = 0.25  # what may still be on its way to an instance that has just died
MOST_ROWS = 30  # of the timeline

REFUSALS = ("rate_limited", "overloaded", "no_healthy_instance", "circuit_open")
LIMITS = ("rate_limited", "overloaded")


@dataclass(frozen=True)
class Trial:
    """What was done to which instance, and what the cluster said of it."""

    agent: str
    instance: str
    mode: str  # kill | drain | unhealthy
    duration_s: float
    rate: float
    others: int  # healthy instances beside it
    known_s: float  # when the call that took it away returned
    left_s: float | None  # when its process had ended, or it might be healthy again; None: it has not finished its requests
    back_from_s: float | None  # requests of later than this that it answered show that it is back; None: it is not
    ready_s: float | None  # when it was seen healthy again
    serves: bool  # whether it should get requests again: not with weight 0


def report(trial: Trial, probes: Sequence[Probe], strategy: str, expected: Mapping[str, float], exact: bool) -> dict[str, Any]:
    """The object that --json prints."""
    probes = sorted(probes, key=lambda probe: probe.began_s)
    bad = [probe for probe in probes if not probe.ok]
    lost = [probe for probe in bad if could_be_saved(trial, probe)]
    refused = [probe for probe in bad if probe.error in REFUSALS]
    before, after = _of_instance(trial, probes)
    last_s = max([0.0, *(probe.ended_s for probe in before)])
    last_began_s = max([0.0, *(probe.began_s for probe in before)])
    back_s = after[0].ended_s if after else None if trial.serves else trial.ready_s
    window = (max(trial.known_s, last_began_s), min([math.inf, *(probe.began_s for probe in after)]))
    why = _why_failed(trial, lost, back_s, last_began_s)
    counts = {
        "sent": len(probes),
        "ok": len(probes) - len(bad),
        "refused": len(refused),
        "failed": len(bad) - len(refused),
        "lost": len(lost),
        "unavoidable": sum(probe.ended_s >= 0 and probe not in lost for probe in bad if probe.error not in LIMITS),
        "saved_by_retry": sum(probe.ok and probe.attempts > 1 for probe in probes),
    }
    return {
        "agent": trial.agent,
        "instance": trial.instance,
        "mode": trial.mode,
        "duration_s": trial.duration_s,
        "rate": trial.rate,
        "passed": not why,
        "verdict": f"FAILED: {'; '.join(why)}" if why else _passed(trial, counts, back_s),
        "requests": counts,
        "errors": _errors(bad, lost),
        "last_answer_s": _round(last_s),
        "back_s": _round(back_s),
        "timeline": _timeline(trial, probes),
        "shares": _shares(strategy, expected, exact, window, probes),
    }


def could_be_saved(trial: Trial, failed: Probe) -> bool:
    if failed.ended_s < 0 or failed.error in LIMITS:
        return False
    if not trial.others and (trial.back_from_s is None or failed.began_s < trial.back_from_s + 1):
        return False
    if failed.error == "agent_error":
        return failed.instance in ("", trial.instance)
    in_flight = trial.mode == "kill" and failed.error == "instance_failed" and failed.began_s <= trial.known_s + NOTICE_S
    return not (in_flight and _is_about(trial.instance, failed))


def _is_about(instance: str, failed: Probe) -> bool:
    named = {failed.instance} - {""} or set(re.findall(r"\binstance-\d+", failed.message))
    return not named or instance in named


def _of_instance(trial: Trial, probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """What it answered after the take-away: as it was, and once it was back."""
    back_from_s = math.inf if trial.back_from_s is None else trial.back_from_s
    answered = [probe for probe in probes if probe.ok and probe.instance == trial.instance and probe.ended_s >= 0]
    before = [probe for probe in answered if probe.began_s < back_from_s]
    return before, [probe for probe in answered if probe.began_s >= back_from_s]


def _why_failed(trial: Trial, lost: Sequence[Probe], back_s: float | None, last_began_s: float) -> list[str]:
    why = []
    if lost:
        first = lost[0]
        said = f"the first, {first.error} after {first.ended_s:.2f} s: {first.message}"
        why.append(f"{_requests(len(lost))} lost that could have been saved ({said})")
    if last_began_s > trial.known_s + OUT_WITHIN_S and trial.others:
        why.append(f"{trial.instance} still got requests {last_began_s:.1f} s after it was taken away")
    if trial.left_s is None:
        why.append(f"{trial.instance} had not finished its requests after {DRAIN_WITHIN_S / 60:g} minutes")
    elif back_s is None or back_s > trial.left_s + BACK_WITHIN_S + 1:
        doing = "back and serving" if trial.serves else "healthy again"
        why.append(f"{trial.instance} was not {doing} within {BACK_WITHIN_S:g} s")
    return why


def _passed(trial: Trial, counts: Mapping[str, int], back_s: float | None) -> str:
    unavoidable = counts["unavoidable"]
    if not trial.others:
        lost = f"{_requests(unavoidable)} not answered, because nobody else was there"
    elif unavoidable:
        lost = f"only {_requests(unavoidable)} lost, in flight when it was killed"
    else:
        lost = f"none of {counts['sent']} requests lost"
    return f"passed: {lost}; {trial.instance} back after {back_s or 0:.1f} s"


def _errors(bad: Sequence[Probe], lost: Sequence[Probe]) -> list[dict[str, Any]]:
    found = Counter((probe.error, probe.status) for probe in bad)
    could = Counter((probe.error, probe.status) for probe in lost)
    return [
        {
            "type": key[0],
            "status": key[1],
            "count": count,
            "lost": could[key],
            "message": next(probe.message for probe in bad if (probe.error, probe.status) == key),
        }
        for key, count in found.most_common()
    ]


def _timeline(trial: Trial, probes: Sequence[Probe]) -> dict[str, Any]:
    """By when requests began. A bucket is whole seconds; 0 begins with the take-away."""
    first, last = (probes[0].began_s, probes[-1].began_s) if probes else (0.0, 0.0)
    size = next(size for size in (1, 2, 5, 10, 30, 60, 300, 3600) if (last - first) / size <= MOST_ROWS - 2 or size == 3600)
    buckets: dict[int, list[Probe]] = {n: [] for n in range(math.floor(first / size), math.floor(last / size) + 1)}
    for probe in probes:
        buckets[math.floor(probe.began_s / size)].append(probe)
    return {
        "bucket_s": size,
        "buckets": [
            {
                "from_s": number * size,
                "requests": len(inside),
                "by_instance": sum(probe.ok and probe.instance == trial.instance for probe in inside),
                "failed": sum(not probe.ok for probe in inside),
            }
            for number, inside in buckets.items()
        ],
    }


def _shares(
    strategy: str, expected: Mapping[str, float], exact: bool, window: tuple[float, float], probes: Sequence[Probe]
) -> dict[str, Any]:
    """Of what began while it was away: who answered how much."""
    since, until = window
    inside = [probe for probe in probes if probe.ok and since < probe.began_s < until]
    counts = Counter(probe.instance for probe in inside)
    names = [*expected, *sorted(counts.keys() - expected.keys())]
    return {
        "strategy": strategy,
        "exact": exact,
        "from_s": _round(since),
        "to_s": _round(until if until < math.inf else max([since, *(probe.began_s for probe in probes)])),
        "requests": len(inside),
        "instances": [
            {
                "id": name,
                "expected": _round(expected[name], 2) if name in expected else None,
                "observed": _round(100 * counts[name] / len(inside), 2) if inside else None,
                "requests": counts[name],
            }
            for name in names
        ],
    }


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _round(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
