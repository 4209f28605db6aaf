"""From the probes of a failover test to its report. Pure; times are in seconds since the instance was taken out.

A failure is unavoidable when the request was in flight on a killed instance (it may have been started there, so it must not
be sent again), or when no other healthy instance was left. Every other failure after the start counts as lost, except
refusals by a limit (rate_limited, overloaded), which the limit is responsible for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from swiftclaw.cli.failover.probes import Probe
from swiftclaw.cli.failover.report import (
    ErrorCount,
    FailoverReport,
    InstanceShare,
    RequestCounts,
    Timeline,
    TimelineBucket,
    TrafficShares,
)
from swiftclaw.cli.failover.trial import BACK_WITHIN_S, DRAIN_WITHIN_S, TrialResult

OUT_WITHIN_S = 5.0  # an instance that receives new requests for longer than this was not taken out
NOTICE_S = 0.25  # requests may still be on their way to an instance that has just died
MOST_ROWS = 30  # of the timeline
BUCKETS_S = (1, 2, 5, 10, 30, 60, 300, 3600)

REFUSALS = ("rate_limited", "overloaded", "no_healthy_instance", "circuit_open")
LIMITS = ("rate_limited", "overloaded")


def evaluate(
    trial: TrialResult, probes: Sequence[Probe], strategy: str, expected: Mapping[str, float], exact: bool
) -> FailoverReport:
    """`expected`: instance -> percent of the traffic while the trial's instance was out; `exact`: must hold exactly."""
    probes = sorted(probes, key=lambda probe: probe.began_s)
    failures = [probe for probe in probes if not probe.ok]
    lost = [probe for probe in failures if could_be_saved(trial, probe)]
    before, after = _answers_of_instance(trial, probes)
    last_s = max([0.0, *(probe.ended_s for probe in before)])
    last_began_s = max([0.0, *(probe.began_s for probe in before)])
    back_s = after[0].ended_s if after else None if trial.serves else trial.ready_s
    window = (max(trial.confirmed_s, last_began_s), min([math.inf, *(probe.began_s for probe in after)]))
    reasons = _why_failed(trial, lost, back_s, last_began_s)
    counts = _counts(probes, failures, lost)
    return FailoverReport(
        agent=trial.agent,
        instance=trial.instance,
        mode=trial.mode,
        duration_s=trial.duration_s,
        rate=trial.rate,
        passed=not reasons,
        verdict=f"FAILED: {'; '.join(reasons)}" if reasons else _passed(trial, counts, back_s),
        requests=counts,
        errors=_errors(failures, lost),
        last_answer_s=round(last_s, 3),
        back_s=_round(back_s),
        timeline=_timeline(trial, probes),
        shares=_shares(strategy, expected, exact, window, probes),
    )


def could_be_saved(trial: TrialResult, failure: Probe) -> bool:
    """Whether the balancer should have prevented this failure."""
    if failure.ended_s < 0 or failure.error in LIMITS:
        return False
    if not trial.others and (trial.back_from_s is None or failure.began_s < trial.back_from_s + 1):
        return False
    if failure.error == "agent_error":
        return failure.instance in ("", trial.instance)
    noticed_s = trial.confirmed_s + NOTICE_S
    in_flight = trial.mode == "kill" and failure.error == "instance_failed" and failure.began_s <= noticed_s
    return not (in_flight and _may_be_of(trial.instance, failure))


def _may_be_of(instance: str, failure: Probe) -> bool:
    """Whether the failure names this instance, or none."""
    names = {failure.instance} - {""} or set(re.findall(r"\binstance-\d+", failure.message))
    return not names or instance in names


def _answers_of_instance(trial: TrialResult, probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """The instance's answers since it was taken out: (those from before it was out, those since it is back)."""
    back_from_s = math.inf if trial.back_from_s is None else trial.back_from_s
    answers = [probe for probe in probes if probe.ok and probe.instance == trial.instance and probe.ended_s >= 0]
    before = [probe for probe in answers if probe.began_s < back_from_s]
    return before, [probe for probe in answers if probe.began_s >= back_from_s]


def _counts(probes: Sequence[Probe], failures: Sequence[Probe], lost: Sequence[Probe]) -> RequestCounts:
    refused = sum(probe.error in REFUSALS for probe in failures)
    return RequestCounts(
        sent=len(probes),
        ok=len(probes) - len(failures),
        refused=refused,
        failed=len(failures) - refused,
        lost=len(lost),
        unavoidable=sum(probe.ended_s >= 0 and probe not in lost for probe in failures if probe.error not in LIMITS),
        saved_by_retry=sum(probe.ok and probe.attempts > 1 for probe in probes),
    )


def _why_failed(trial: TrialResult, lost: Sequence[Probe], back_s: float | None, last_began_s: float) -> list[str]:
    reasons = []
    if lost:
        first = lost[0]
        details = f"the first, {first.error} after {first.ended_s:.2f} s: {first.message}"
        reasons.append(f"{_requests(len(lost))} lost that could have been saved ({details})")
    if last_began_s > trial.confirmed_s + OUT_WITHIN_S and trial.others:
        reasons.append(f"{trial.instance} still received requests {last_began_s:.1f} s after it was taken out of service")
    if trial.left_s is None:
        reasons.append(f"{trial.instance} had not finished its requests after {DRAIN_WITHIN_S / 60:g} minutes")
    elif back_s is None or back_s > trial.left_s + BACK_WITHIN_S + 1:
        state = "back and serving" if trial.serves else "healthy again"
        reasons.append(f"{trial.instance} was not {state} within {BACK_WITHIN_S:g} s")
    return reasons


def _passed(trial: TrialResult, counts: RequestCounts, back_s: float | None) -> str:
    if not trial.others:
        lost = f"{_requests(counts.unavoidable)} not answered, because no other instance was healthy"
    elif counts.unavoidable:
        lost = f"only {_requests(counts.unavoidable)} lost, in flight when the instance was killed"
    else:
        lost = f"none of {counts.sent} requests lost"
    return f"passed: {lost}; {trial.instance} back after {back_s or 0:.1f} s"


def _errors(failures: Sequence[Probe], lost: Sequence[Probe]) -> list[ErrorCount]:
    """By type and status, the most frequent first."""
    counts = Counter((probe.error, probe.status) for probe in failures)
    lost_counts = Counter((probe.error, probe.status) for probe in lost)
    first = {(probe.error, probe.status): probe.message for probe in reversed(failures)}
    return [ErrorCount(*key, count, lost_counts[key], first[key]) for key, count in counts.most_common()]


def _timeline(trial: TrialResult, probes: Sequence[Probe]) -> Timeline:
    """Requests by the time at which they began, in at most MOST_ROWS buckets."""
    first, last = (probes[0].began_s, probes[-1].began_s) if probes else (0.0, 0.0)
    size = next(size for size in BUCKETS_S if (last - first) / size <= MOST_ROWS - 2 or size == BUCKETS_S[-1])
    buckets: dict[int, list[Probe]] = {n: [] for n in range(math.floor(first / size), math.floor(last / size) + 1)}
    for probe in probes:
        buckets[math.floor(probe.began_s / size)].append(probe)
    return Timeline(
        size,
        [
            TimelineBucket(
                from_s=number * size,
                requests=len(members),
                by_instance=sum(probe.ok and probe.instance == trial.instance for probe in members),
                failed=sum(not probe.ok for probe in members),
            )
            for number, members in buckets.items()
        ],
    )


def _shares(
    strategy: str, expected: Mapping[str, float], exact: bool, window: tuple[float, float], probes: Sequence[Probe]
) -> TrafficShares:
    """The shares of the requests that began within the window."""
    since, until = window
    answers = [probe for probe in probes if probe.ok and since < probe.began_s < until]
    counts = Counter(probe.instance for probe in answers)
    names = [*expected, *sorted(counts.keys() - expected.keys())]
    return TrafficShares(
        strategy=strategy,
        exact=exact,
        from_s=_round(since),
        to_s=_round(until if until < math.inf else max([since, *(probe.began_s for probe in probes)])),
        requests=len(answers),
        instances=[
            InstanceShare(
                id=name,
                expected=_round(expected[name], 2) if name in expected else None,
                observed=_round(100 * counts[name] / len(answers), 2) if answers else None,
                requests=counts[name],
            )
            for name in names
        ],
    )


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _round(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
