"""Is the canary as good as the stable version, and may its share grow?

For agents with a `canary:` block. Both versions are compared over the same time, since the canary received its share. A
worse canary is rolled back as soon as that is certain; one that is as good receives the next of the `steps` after
`interval`. An inconclusive comparison changes nothing and continues. The counts are in memory only: after a restart of the
Controller the comparison starts again. The rule itself: `policies.rollout.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.config import Settings
from cluster.config.agent_settings import CanarySettings as Terms
from cluster.desired.rollout_transitions import CanaryState, Rollout
from cluster.telemetry.tally import Key
from cluster.telemetry.totals import MetricTotals
from policies.rollout import VersionStats, judge, next_step

Counted = dict[Key, tuple[int, int, float]]  # requests, errors, seconds since the Controller started


@dataclass(frozen=True)
class AnalysisStep:
    """The result: a new share for the canary; None: roll it back."""

    agent: str
    percent: float | None
    reason: str


@dataclass(frozen=True)
class _Begun:
    canary: str
    percent: float
    at: float
    counted: Counted


class CanaryAnalysis:
    """Call `look` once a second. Times are monotonic seconds."""

    def __init__(
        self,
        ledger: MetricTotals,
        is_tripped: Callable[[str, str], bool],
        crashes: Callable[[str, str, float], int] = lambda agent, version, now: 0,
    ) -> None:
        """`is_tripped(agent, version)`: whether the breakers of all instances of that version are open. `crashes(agent,
        version, now)`: how often one of its instances has crashed in a row."""
        self._ledger, self._is_tripped, self._crashes = ledger, is_tripped, crashes
        self._begun: dict[str, _Begun] = {}
        self.notes: dict[str, str] = {}  # agent -> the current verdict and its reason

    def look(self, settings: Settings, rollouts: Mapping[str, Rollout], now: float) -> list[AnalysisStep]:
        steps = []
        for name, agent in settings.agents.items():
            rollout = rollouts.get(name)
            canary = rollout.canary if rollout else None
            if agent.canary is None or rollout is None or canary is None or canary.moving or canary.paused:
                self._begun.pop(name, None)
                self.notes.pop(name, None)
                continue
            step = self._compare(name, agent.canary, rollout.stable.name, canary, now)
            if step is not None:
                self._begun.pop(name, None)
                steps.append(step)
        return steps

    def _compare(self, agent: str, terms: Terms, stable: str, canary: CanaryState, now: float) -> AnalysisStep | None:
        begun = self._begun.get(agent)
        if begun is None or (begun.canary, begun.percent) != (canary.version.name, canary.percent):
            self._begun[agent] = _Begun(canary.version.name, canary.percent, now, self._counted(agent))
            return None
        judgement = judge(
            self._since(agent, canary.version.name, begun.counted, now),
            self._since(agent, stable, begun.counted, now),
            max_error_rate=terms.max_error_rate,
            max_latency_ratio=terms.max_latency_ratio,
            min_requests=terms.min_requests,
        )
        self.notes[agent] = f"{judgement.verdict}: {judgement.reason}"
        if judgement.verdict == "worse":
            return AnalysisStep(agent, None, judgement.reason)
        if judgement.verdict == "inconclusive" or now - begun.at < terms.interval_s:
            return None
        percent = next_step(terms.steps, canary.percent)
        if percent is None:  # the last step: the comparison continues
            self._begun[agent] = _Begun(canary.version.name, canary.percent, now, self._counted(agent))
            return None
        return AnalysisStep(agent, percent, judgement.reason)

    def _counted(self, agent: str) -> Counted:
        return {
            key: (totals.requests, totals.errors, totals.duration_sum_s)
            for key, totals in self._ledger.instances.items()
            if key[0] == agent
        }

    def _since(self, agent: str, version: str, before: Counted, now: float) -> VersionStats:
        requests, errors, seconds = 0, 0, 0.0
        for key, counted in self._counted(agent).items():
            if key[1] == version:
                earlier = before.get(key, (0, 0, 0.0))
                requests += counted[0] - earlier[0]
                errors += counted[1] - earlier[1]
                seconds += counted[2] - earlier[2]
        latency_ms = 1000 * seconds / requests if requests else None
        tripped, crashes = self._is_tripped(agent, version), self._crashes(agent, version, now)
        return VersionStats(requests, errors, latency_ms, tripped, crashes)
