"""The bounds that the comparison must meet, and their verdicts.

A bound holds if the mean over the seeds meets it; the verdict notes when the confidence interval crosses the bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simulation import scenarios as s
from simulation.experiments import Key, Results, paired, summary
from simulation.scenarios import Contender, Scenario
from simulation.stats import Interval

NOT_WORSE = 1.0
FLAT = 0.15


@dataclass(frozen=True, slots=True)
class Bound:
    claim: str
    where: str
    limit: float
    measured: Interval
    at_least: bool = False  # else: at most
    required: bool = True  # False: reported beside the required ones, for the reader

    @property
    def holds(self) -> bool:
        return self.measured.mean >= self.limit if self.at_least else self.measured.mean <= self.limit

    @property
    def verdict(self) -> str:
        crosses = self.measured.low < self.limit < self.measured.high
        return ("holds" if self.holds else "missed") + (", within noise" if crosses else "")


def evaluate(results: Results) -> list[Bound]:
    return [
        *_reports_alone(results),
        *_exchange(results),
        *_flat(results),
        *_against_power_of_two(results),
        *_bad_instance(results),
    ]


def _key(scenario: Scenario, contender: Contender, gateways: int = s.GATEWAYS) -> Key:
    return scenario.name, contender.name, gateways


def _ratio(results: Results, scenario: Scenario, contender: Contender) -> Interval:
    return summary(results, _key(scenario, contender), "mean_ratio")


def _reports_alone(results: Results) -> Iterable[Bound]:
    for scenario, limit in ((s.EQUAL, 1.8), (s.LOG_NORMAL, 2.1)):
        measured = _ratio(results, scenario, s.LEAST_REPORTS)
        yield Bound("least-connections, reports alone: mean time over central queue", scenario.title, limit, measured)


def _exchange(results: Results) -> Iterable[Bound]:
    claim = "least-connections, exchange 0.1: mean time over central queue"
    for scenario in (s.EQUAL, s.LOG_NORMAL, s.AGENT_MIX, s.BURSTY):
        measured = _ratio(results, scenario, s.LEAST_EXCHANGE)
        yield Bound(claim, scenario.title, 1.4, measured, required=scenario is s.EQUAL)
    claim = "response-time, exchange 0.1: mean time over central queue"
    named = (s.EQUAL, s.TWO_SLOW, s.SPEEDS, s.SLOTS, s.AGENT_MIX)
    for scenario in (*named, s.LOG_NORMAL, s.BURSTY, s.SHARING):
        measured = _ratio(results, scenario, s.RESPONSE_EXCHANGE)
        yield Bound(claim, scenario.title, 1.4, measured, required=scenario in named)


def _flat(results: Results) -> Iterable[Bound]:
    """The worst number of gateways against a single one, on the same traces."""
    for scenario in (s.EQUAL, s.SPEEDS):
        for contender in (s.LEAST_EXCHANGE, s.RESPONSE_EXCHANGE):
            one = _key(scenario, contender, 1)
            ratios = [paired(results, _key(scenario, contender, n), one) for n in s.GATEWAY_COUNTS[1:]]
            worst = max(ratios, key=lambda ratio: abs(ratio.mean - 1))
            claim = f"{contender.rule}, exchange 0.1: change of the mean time from 1 to 2, 4, 8 gateways"
            yield Bound(claim, scenario.title, FLAT, Interval(abs(worst.mean - 1), worst.half))


def _against_power_of_two(results: Results) -> Iterable[Bound]:
    """With the same knowledge, in the scenario where it does worst."""
    for contender, peer in (
        (s.LEAST_REPORTS, s.P2C_REPORTS),
        (s.RESPONSE_REPORTS, s.P2C_REPORTS),
        (s.LEAST_EXCHANGE, s.P2C_EXCHANGE),
        (s.RESPONSE_EXCHANGE, s.P2C_EXCHANGE),
    ):
        ratios = {sc.title: paired(results, _key(sc, contender), _key(sc, peer)) for sc in s.SCENARIOS}
        where = max(ratios, key=lambda title: ratios[title].mean)
        claim = f"{contender.name}: mean time over power of two's, same knowledge"
        yield Bound(claim, f"worst of {len(ratios)}: {where}", NOT_WORSE, ratios[where])


def _bad_instance(results: Results) -> Iterable[Bound]:
    fair = 1 / len(s.FAILS_FAST.fleet.speeds)
    for contender in (s.RESPONSE_REPORTS, s.RESPONSE_EXCHANGE):
        measured = summary(results, _key(s.FAILS_FAST, contender), "bad_share")
        yield Bound(f"{contender.name}: share of the failing instance", s.FAILS_FAST.title, fair, measured)
    for contender in (s.RESPONSE_REPORTS, s.RESPONSE_EXCHANGE):
        measured = summary(results, _key(s.FAILS_FAST_LONG, contender), "bad_share")
        claim = f"{contender.name}: share of the failing instance"
        yield Bound(claim, s.FAILS_FAST_LONG.title, fair, measured, required=False)
    for scenario in (s.FROZEN_GUARDED, s.FROZEN):
        for contender in (s.LEAST_REPORTS, s.LEAST_EXCHANGE, s.RESPONSE_REPORTS, s.RESPONSE_EXCHANGE):
            measured = summary(results, _key(scenario, contender), "success")
            claim = f"{contender.name}: share of successes"
            yield Bound(claim, scenario.title, 0.995, measured, at_least=True, required=scenario is s.FROZEN_GUARDED)
        lost = summary(results, _key(scenario, s.ROUND_ROBIN), "success")
        yield Bound("round-robin: share of successes, for comparison", scenario.title, 0.995, lost, True, required=False)
