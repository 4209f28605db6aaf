"""A canary that may grow by itself: step by step when it is as good, back at once when it is worse, else nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.config import parse
from cluster.desired.canary_analysis import AnalysisStep, CanaryAnalysis
from cluster.desired.rollout_transitions import Rollout, Version, advance, bring_in, pause
from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.totals import MetricTotals

TERMS = {"maxErrorRate": 5, "maxLatencyRatio": 1.5, "minRequests": 50, "interval": "30s", "steps": [10, 25, 100]}


class Side:
    """Both versions' traffic, and the analysis of it."""

    def __init__(self, percent: float = 10.0, terms: dict[str, Any] | None = None) -> None:
        agent: dict[str, Any] = {"agent": "m:a", **({"canary": terms or TERMS} if terms != {} else {})}
        self.settings = parse({"agents": {"a": agent}}, Path("/"))
        self.ledger, self.now = MetricTotals(), 0.0
        self.tripped: set[str] = set()
        self.crashes: dict[str, int] = {}
        self.analysis = CanaryAnalysis(
            self.ledger, lambda _, version: version in self.tripped, lambda _, version, now: self.crashes.get(version, 0)
        )
        self.rollout = advance(bring_in(Rollout(Version("v1"), "v1"), Version("v2"), percent, {}, 0.0), True, "", 0.0)
        assert self.look() == []

    def answered(self, version: str, ok: int, errors: int = 0, seconds: float = 0.1) -> None:
        counts = InstanceCounts(0, {200: ok, 500: errors}, duration_sum_s=seconds * (ok + errors))
        self.ledger.add(Observation("g", {("a", version, "us", "instance-1"): counts}), self.now)

    def look(self, after: float = 0.0) -> list[AnalysisStep]:
        self.now += after
        return self.analysis.look(self.settings, {"a": self.rollout}, self.now)


def test_one_that_is_as_good_gets_the_next_step_after_the_interval_and_not_before() -> None:
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 100)
    assert side.look(after=10) == []
    (step,) = side.look(after=21)
    assert (step.agent, step.percent) == ("a", 25)


def test_one_that_answers_errors_goes_back_at_once_with_the_reason() -> None:
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 90, 10)
    (step,) = side.look(after=1)
    assert step.percent is None
    assert step.reason == "10 % of the canary's 100 requests failed (allowed: 5 %)"


def test_one_that_is_slower_goes_back() -> None:
    side = Side()
    side.answered("v1", 900, seconds=0.1)
    side.answered("v2", 100, seconds=0.2)
    (step,) = side.look(after=1)
    assert step.percent is None and "more than 1.5 times as long" in step.reason


def test_too_few_requests_never_promote_and_the_comparison_goes_on() -> None:
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 49)
    for _ in range(20):
        assert side.look(after=60) == []
    assert side.analysis.notes["a"] == "inconclusive: the canary has answered 49 of the 50 requests needed"
    side.answered("v2", 1)
    assert [step.percent for step in side.look(after=1)] == [25]


def test_one_whose_breakers_have_all_opened_goes_back_though_it_had_few_requests() -> None:
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 0, 6)
    assert side.look(after=1) == []
    side.tripped = {"v2"}
    (step,) = side.look(after=1)
    assert step.percent is None
    assert step.reason == "100 % of the canary's 6 requests failed (allowed: 5 %), and all its circuit breakers are open"


def test_one_whose_breakers_opened_though_it_failed_nobody_waits_and_never_grows() -> None:
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 40)
    side.tripped = {"v2"}
    for _ in range(20):
        assert side.look(after=60) == []


def test_when_both_versions_fail_the_same_open_breakers_are_no_reason_to_go_back() -> None:
    side = Side()
    side.answered("v1", 0, 900)
    side.answered("v2", 0, 6)
    side.tripped = {"v1", "v2"}
    assert side.look(after=1) == []
    assert "the stable version fails as often" in side.analysis.notes["a"]


def test_what_was_before_the_share_does_not_count() -> None:
    side = Side()
    side.answered("v2", 10, 990)
    side.rollout = advance(bring_in(Rollout(Version("v1"), "v1"), Version("v2"), 25, {}, 0.0), True, "", 0.0)
    assert side.look() == []
    side.answered("v1", 100)
    side.answered("v2", 100)
    assert [step.percent for step in side.look(after=31)] == [100]


def test_after_the_last_step_it_is_still_watched() -> None:
    side = Side(terms={**TERMS, "steps": [10]})
    for _ in range(3):
        side.answered("v1", 900)
        side.answered("v2", 100)
        assert side.look(after=31) == []
    side.answered("v2", 50, 50)
    assert [step.percent for step in side.look(after=1)] == [None]


def test_nothing_is_done_without_a_block_or_while_it_pauses() -> None:
    without, paused = Side(terms={}), Side()
    paused.rollout = pause(paused.rollout, True)
    for side in (without, paused):
        side.answered("v1", 900)
        side.answered("v2", 0, 100)
        assert side.look(after=60) == []
    paused.rollout = pause(paused.rollout, False)
    assert paused.look() == [], "it begins to compare anew"
    paused.answered("v2", 0, 100)
    assert [step.percent for step in paused.look(after=1)] == [None]


def test_one_that_crashes_is_held_after_the_first_time_and_goes_back_after_the_second() -> None:
    """In between it answers well: its errors alone would let it pass."""
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 100)
    side.crashes["v2"] = 1
    assert side.look(after=60) == []
    assert side.analysis.notes["a"] == "inconclusive: an instance of the canary has crashed once soon after its start"
    side.crashes["v2"] = 2
    (step,) = side.look(after=1)
    assert step.percent is None and "crashed 2 times in a row" in step.reason


def test_one_that_crashes_as_the_stable_version_does_is_compared_by_its_requests() -> None:
    side = Side()
    side.answered("v1", 900)
    side.answered("v2", 100)
    side.crashes = {"v1": 2, "v2": 2}
    assert [step.percent for step in side.look(after=31)] == [25]
