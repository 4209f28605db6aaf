"""Chooser: session, level and strategy together; each replaced while traffic runs."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import STRATEGIES
from policies.base import Instance, Options, Request
from policies.chooser import MOST_LEVELS, Chooser
from policies.regions.distance import Distances

SESSIONS = [f"session-{number}" for number in range(300)]
every_strategy = pytest.mark.parametrize("strategy", list(STRATEGIES))


def fleet(*sizes: int) -> list[Instance]:
    regions = ("us-east-1", "eu-west-1", "ap-southeast-1")
    spots = [(regions[level], level + 1) for level, size in enumerate(sizes) for _ in range(size)]
    return [Instance(f"instance-{n}", region=region, priority=level) for n, (region, level) in enumerate(spots, start=1)]


def ask(session: str | None = None, now: float = 0.0, pin: str | None = None, region: str = "us-east-1") -> Request:
    return Request(agent="agent", session=session, region=region, now=now, pin=pin)


def name(instance: Instance | None) -> str:
    assert instance is not None
    return instance.id


def without(instances: list[Instance], *gone: str) -> list[Instance]:
    return [instance for instance in instances if instance.id not in gone]


@every_strategy
def test_nobody_gives_none_and_one_gives_it(strategy: str) -> None:
    chooser = Chooser(strategy, Random(1), affinity=True)
    everyone = fleet(3)
    assert chooser.choose([], everyone, ask("s")) is None
    assert chooser.choose(everyone[1:2], everyone, ask("s")) is everyone[1]
    assert chooser.choose(everyone[2:], everyone, ask()) is everyone[2]


@every_strategy
@given(
    fleet_flags=st.lists(st.tuples(st.integers(1, 3), *[st.booleans()] * 4, st.sampled_from([0.0, 1.0, 2.0])), max_size=12),
    sessions=st.lists(st.none() | st.sampled_from(["s1", "s2"]), min_size=3, max_size=3),
)
def test_only_eligible_ones_that_may_be_used(
    strategy: str, fleet_flags: list[tuple[int, bool, bool, bool, bool, float]], sessions: list[str | None]
) -> None:
    everyone, eligible = [], []
    for number, (level, healthy, checked, draining, offered, weight) in enumerate(fleet_flags):
        instance = Instance(f"i{number}", region=f"r{level}", priority=level, weight=weight)
        instance.healthy, instance.checked, instance.draining = healthy, checked, draining
        everyone.append(instance)
        if offered:
            eligible.append(instance)
    chooser = Chooser(strategy, Random(1), affinity=True)
    best = [instance for instance in eligible if instance.healthy and not instance.draining and instance.weight]
    for session in sessions:
        chosen = chooser.choose(eligible, everyone, ask(session))
        if best:
            assert chosen is not None
        if chosen is not None:
            assert chosen in eligible
            assert chosen.weight > 0
            assert not chosen.draining


@pytest.mark.parametrize("strategy", ["round-robin", "least-connections", "response-time"])
def test_priority_decides_first_and_the_strategy_within(strategy: str) -> None:
    everyone = fleet(4, 2, 1)
    chooser = Chooser(strategy, Random(1))
    everyone[0].healthy = everyone[1].healthy = False
    eligible = [instance for instance in everyone if instance.healthy]
    counts = Counter(name(chooser.choose(eligible, everyone, ask())) for _ in range(1000))
    assert counts["instance-3"] + counts["instance-4"] == 700
    assert counts["instance-5"] + counts["instance-6"] == 300
    assert counts["instance-3"] == pytest.approx(350, abs=50)
    if strategy == "round-robin":
        assert (counts["instance-3"], counts["instance-5"]) == (350, 150)


def test_geographic_goes_by_distance_and_falls_over_to_the_next_nearest() -> None:
    everyone = fleet(2, 2, 2)
    chooser = Chooser("geographic", Random(1))

    def regions(client: str) -> Counter[str]:
        eligible = [instance for instance in everyone if instance.healthy]
        chosen = (chooser.choose(eligible, everyone, ask(region=client)) for _ in range(100))
        return Counter(instance.region for instance in chosen if instance is not None)

    assert regions("eu-west-1") == {"eu-west-1": 100}
    everyone[2].healthy = False
    assert regions("eu-west-1") == {"eu-west-1": 70, "us-east-1": 30}
    everyone[3].healthy = False
    assert regions("eu-west-1") == {"us-east-1": 100}
    assert regions("ap-southeast-1") == {"ap-southeast-1": 100}


@every_strategy
def test_in_panic_all_that_answer_are_used(strategy: str) -> None:
    everyone = fleet(5)
    for instance in everyone[1:]:
        instance.healthy = False
    chooser = Chooser(strategy, Random(1))
    counts = Counter(name(chooser.choose(everyone[:4], everyone, ask())) for _ in range(400))
    assert len(counts) == 4
    everyone[1].healthy = everyone[2].healthy = True
    assert {name(chooser.choose(everyone, everyone, ask())) for _ in range(100)} == {"instance-1", "instance-2", "instance-3"}


@every_strategy
def test_a_level_of_weight_0_is_passed_over(strategy: str) -> None:
    everyone = fleet(2, 2)
    everyone[0].weight = everyone[1].weight = 0.0
    chooser = Chooser(strategy, Random(1), affinity=True)
    for session in (None, "s1"):
        assert name(chooser.choose(everyone, everyone, ask(session))) in {"instance-3", "instance-4"}


@every_strategy
def test_a_session_goes_to_its_home_while_that_may_take_it_and_else_where_the_hash_says(strategy: str) -> None:
    chooser = Chooser(strategy, Random(1), affinity=True)
    everyone = fleet(6)
    for instance in everyone:
        assert chooser.choose(everyone, everyone, ask("s", pin=instance.id)) is instance
    hashed = name(chooser.choose(everyone, everyone, ask("s")))
    left = without(everyone, hashed)
    assert name(chooser.choose(left, everyone, ask("s", pin=hashed))) == name(chooser.choose(left, everyone, ask("s")))
    assert name(chooser.choose(everyone, everyone, ask("s", pin="instance-99"))) == hashed


def test_two_gateways_agree_on_every_first_contact_even_when_levels_share() -> None:
    everyone = fleet(4, 4)
    everyone[0].healthy = everyone[1].healthy = False
    eligible = [instance for instance in everyone if instance.healthy]
    one = Chooser("round-robin", Random(1), affinity=True)
    other = Chooser("response-time", Random(2), affinity=True)
    for _ in range(3):
        other.choose(eligible, everyone, ask())
    first = {session: name(one.choose(eligible, everyone, ask(session))) for session in SESSIONS}
    second = {session: name(other.choose(eligible[::-1], everyone, ask(session))) for session in reversed(SESSIONS)}
    assert first == second
    in_first_level = sum(home in {"instance-3", "instance-4"} for home in first.values())
    assert in_first_level == pytest.approx(210, abs=30)


def test_a_draining_instance_keeps_its_sessions_and_gets_no_new_ones() -> None:
    chooser = Chooser("round-robin", Random(1), affinity=True)
    everyone = fleet(3)
    homes = {session: name(chooser.choose(everyone, everyone, ask(session))) for session in SESSIONS[:100]}
    everyone[0].draining = True
    pinned = {session: name(chooser.choose(everyone, everyone, ask(session, pin=home))) for session, home in homes.items()}
    assert pinned == homes
    new = {name(chooser.choose(everyone, everyone, ask(session))) for session in SESSIONS[100:]}
    assert new == {"instance-2", "instance-3"}
    assert {name(chooser.choose(everyone, everyone, ask())) for _ in range(9)} == {"instance-2", "instance-3"}


def test_without_affinity_sessions_mean_nothing() -> None:
    chooser = Chooser("round-robin", Random(1))
    everyone = fleet(3)
    assert len({name(chooser.choose(everyone, everyone, ask("s"))) for _ in range(3)}) == 3


def test_the_strategy_changes_while_traffic_runs_and_sessions_stay() -> None:
    chooser = Chooser("round-robin", Random(1), affinity=True)
    everyone = fleet(4)
    homes = {session: name(chooser.choose(everyone, everyone, ask(session))) for session in SESSIONS}
    everyone[0].load = everyone[1].load = everyone[2].load = 5
    chooser.configure("least-connections", affinity=True)
    assert {name(chooser.choose(everyone, everyone, ask())) for _ in range(9)} == {"instance-4"}
    assert {session: name(chooser.choose(everyone, everyone, ask(session))) for session in SESSIONS} == homes
    chooser.configure("geographic", Options(distances=Distances()), affinity=False)
    assert chooser.choose(everyone, everyone, ask("s")) is not None


def test_the_same_configuration_again_keeps_the_turns() -> None:
    chooser = Chooser("round-robin", Random(1))
    everyone = fleet(6)
    picked = []
    for _ in range(6):
        picked.append(name(chooser.choose(everyone, everyone, ask())))
        chooser.configure("round-robin", Options())
    assert len(set(picked)) == 6


def test_a_strategy_that_is_not_registered_changes_nothing() -> None:
    chooser = Chooser("round-robin", Random(1), affinity=True)
    with pytest.raises(KeyError):
        chooser.configure("random")
    everyone = fleet(2)
    chooser.choose(everyone, everyone, ask("s"))
    assert repr(chooser).startswith("<Chooser round-robin, with affinity, <LevelChooser from anywhere: {'priority 1': 100}")


def test_strategies_are_kept_for_a_limited_number_of_levels() -> None:
    chooser = Chooser("round-robin", Random(1))
    for level in range(MOST_LEVELS + 2):
        everyone = [Instance("only", region=f"r{level}", priority=level)]
        assert chooser.choose(everyone, everyone, ask()) is everyone[0]
    assert len(chooser._strategies) <= MOST_LEVELS
