"""A large fleet is looked at in part: the choice is still one of those that may be used, and fair."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import STRATEGIES
from policies.base import Instance, Request
from policies.candidates import Candidates, Group
from policies.chooser import Chooser
from policies.sessions.affinity import Rendezvous
from policies.strategies.edf import EdfScheduler

REQUEST = Request(agent="agent", region="eu", now=1.0)
fleets = st.lists(
    st.builds(
        Instance,
        id=st.just(""),
        region=st.sampled_from(["us", "eu", "ap"]),
        priority=st.integers(1, 3),
        weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        load=st.integers(0, 5),
        healthy=st.booleans(),
        draining=st.booleans(),
        capacity=st.just(5),
    ),
    max_size=40,
)


def fleet(size: int, **fields: object) -> list[Instance]:
    return [Instance(f"instance-{number}", **fields) for number in range(size)]  # type: ignore[arg-type]


def anyone(instance: Instance) -> bool:
    return True


def with_room(instance: Instance) -> bool:
    return instance.load < instance.capacity


def of(instances: list[Instance]) -> Candidates:
    return Candidates(Group(instances), with_room)


@given(members=fleets)
def test_as_a_sequence_they_are_those_that_may_be_used(members: list[Instance]) -> None:
    for number, instance in enumerate(members):
        instance.id = f"instance-{number}"
    candidates, expected = of(members), [instance for instance in members if with_room(instance)]
    assert list(candidates) == expected
    assert candidates[:] == expected
    assert len(candidates) == len(expected)
    assert bool(candidates) == bool(expected)
    for instance in members:
        assert candidates.find(instance.id) is (instance if with_room(instance) else None)
    assert candidates.find("another") is None


@given(
    members=fleets,
    strategy=st.sampled_from(list(STRATEGIES)),
    affinity=st.booleans(),
    session=st.sampled_from([None, "ada"]),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_a_chooser_finds_an_instance_exactly_if_it_finds_one_in_the_list(
    members: list[Instance], strategy: str, affinity: bool, session: str | None, seed: int, data: st.DataObject
) -> None:
    """Whether it looks at each or not: the same level, and an instance that may take the request."""
    for number, instance in enumerate(members):
        instance.id = f"instance-{number}"
    pin = data.draw(st.sampled_from([None, *(instance.id for instance in members)]))
    request = Request(agent="agent", session=session, region="eu", now=1.0, pin=pin if session else None)
    listed = [instance for instance in members if with_room(instance)]
    one = Chooser(strategy, Random(seed), affinity=affinity).choose(listed, members, request)
    other = Chooser(strategy, Random(seed), affinity=affinity).choose(of(members), members, request)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert other in listed
        assert other.weight > 0 or (affinity and other.id == pin)
        assert (one.healthy, one.draining) == (other.healthy, other.draining) or not one.healthy or not other.healthy


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_the_only_one_that_may_be_used_is_found(name: str) -> None:
    members = fleet(300, load=5, capacity=5)
    members[150].load = 0
    strategy = STRATEGIES[name](Random(1))
    candidates = of(members)
    assert {strategy.pick(candidates, REQUEST) for _ in range(20)} == {members[150]}


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_all_get_their_share(name: str) -> None:
    members = fleet(200)
    strategy, group = STRATEGIES[name](Random(3)), Group(members)
    counts = Counter(strategy.pick(Candidates(group, anyone), REQUEST) for _ in range(200 * 60))
    assert len(counts) == 200
    assert all(25 <= count <= 100 for count in counts.values())


def test_a_round_reaches_each_once() -> None:
    scheduler, group = EdfScheduler(Random(5)), Group(fleet(1000))
    for _ in range(3):
        picked = [scheduler.pick(Candidates(group, anyone)) for _ in range(1000)]
        assert len(set(picked)) == 1000


@given(weights=st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=30), seed=st.integers(0, 9))
def test_turns_are_shared_by_weight(weights: list[float], seed: int) -> None:
    members = [Instance(f"instance-{number}", weight=weight) for number, weight in enumerate(weights)]
    scheduler, group, rounds = EdfScheduler(Random(seed)), Group(members), 20
    counts = Counter(scheduler.pick(Candidates(group, anyone)) for _ in range(round(sum(weights)) * rounds))
    for instance in members:
        assert abs(counts[instance] - instance.weight * rounds) <= 2


def test_one_that_cannot_take_its_turn_loses_it_and_is_not_repaid() -> None:
    members = fleet(100, capacity=1)
    scheduler, group = EdfScheduler(Random(1)), Group(members)
    members[0].load = 1
    for _ in range(99 * 5):
        assert scheduler.pick(Candidates(group, with_room)) is not members[0]
    members[0].load = 0
    picked = Counter(scheduler.pick(Candidates(group, with_room)) for _ in range(1000))
    assert 9 <= picked[members[0]] <= 11


def test_turns_are_kept_when_the_group_changes() -> None:
    members = fleet(100)
    scheduler, first = EdfScheduler(Random(1)), Group(members)
    before = [scheduler.pick(Candidates(first, anyone)) for _ in range(50)]
    second = Group([*members[:99], Instance("new")])
    after = [scheduler.pick(Candidates(second, anyone)) for _ in range(50)]
    assert len({instance.id for instance in (*before, *after) if instance is not None}) >= 98


def test_newcomers_are_not_flooded() -> None:
    members = fleet(100)
    scheduler, group = EdfScheduler(Random(1)), Group(members)
    for _ in range(5000):
        scheduler.pick(Candidates(group, anyone))
    both = Group([*members, *(Instance(f"new-{number}") for number in range(100))])
    picked = Counter(scheduler.pick(Candidates(both, anyone)) for _ in range(400))
    new = sum(count for instance, count in picked.items() if instance is not None and instance.id.startswith("new"))
    assert 150 <= new <= 250
    assert max(picked.values()) <= 3


def sessions(hashing: Rendezvous, candidates: Candidates, count: int) -> dict[str, Instance | None]:
    return {f"session-{n}": hashing.pick("agent", f"session-{n}", candidates) for n in range(count)}


def test_gateways_agree_on_the_home_of_a_new_session_whatever_the_order_of_their_lists() -> None:
    members = fleet(500)
    one = sessions(Rendezvous(), Candidates(Group(members), anyone), 300)
    other = sessions(Rendezvous(), Candidates(Group(Random(1).sample(members, 500)), anyone), 300)
    assert one == other


@pytest.mark.no_cover  # many picks of code that the others run too
def test_sessions_are_spread_by_weight() -> None:
    members = [Instance(f"instance-{number}", weight=1.0 + number % 2) for number in range(100)]
    homes = Counter(sessions(Rendezvous(), Candidates(Group(members), anyone), 30_000).values())
    light, heavy = [homes[one] for one in members if one.weight == 1.0], [homes[one] for one in members if one.weight == 2.0]
    assert sum(light) == pytest.approx(10_000, rel=0.05)
    assert all(100 < count < 300 for count in light)
    assert all(250 < count < 550 for count in heavy)


def test_a_full_home_is_passed_over_and_no_other_session_moves() -> None:
    members = fleet(300, capacity=1)
    hashing, candidates = Rendezvous(), of(members)
    before = sessions(hashing, candidates, 400)
    full = before["session-7"]
    assert full is not None
    full.load = 1
    after = sessions(hashing, candidates, 400)
    assert after["session-7"] not in (None, full)
    assert all(after[name] is home for name, home in before.items() if home is not full)


def test_an_instance_that_leaves_moves_few_sessions_but_its_own() -> None:
    members = fleet(300)
    before = sessions(Rendezvous(), Candidates(Group(members), anyone), 3000)
    after = sessions(Rendezvous(), Candidates(Group(members[1:]), anyone), 3000)
    moved = [name for name, home in before.items() if home is not members[0] and after[name] is not home]
    assert len(moved) <= 60  # 10 are its own; its part has become lighter by a twentieth


def test_reprs_state_sizes() -> None:
    candidates = Candidates(Group(fleet(3)), anyone)
    assert repr(candidates) == "<Candidates of <Group of 3 instances>>"
    scheduler = EdfScheduler(Random(1))
    scheduler.pick(candidates)
    assert repr(scheduler) == "<EdfScheduler of 3 instances>"


def test_a_session_has_no_home_where_none_may_be_used() -> None:
    assert Rendezvous().pick("agent", "ada", Candidates(Group(fleet(200)), lambda instance: False)) is None
    assert Rendezvous().pick("agent", "ada", Candidates(Group(fleet(200, weight=0.0)), anyone)) is None
    assert Rendezvous().pick("agent", "ada", Candidates(Group(()), anyone)) is None


def test_a_large_level_that_is_full_passes_requests_on_and_takes_them_again_when_it_has_room() -> None:
    """It is looked at once for as many requests as it has times 64 instances."""
    first = [Instance(f"instance-{number}", priority=1, capacity=10, load=9) for number in range(200)]
    members = [*first, *(Instance(f"other-{number}", priority=2, capacity=10) for number in range(200))]
    chooser, candidates = Chooser("round-robin", Random(1)), of(members)

    def priorities_of(count: int) -> set[int]:
        chosen = [chooser.choose(candidates, members, REQUEST, stamp="same") for _ in range(count)]
        return {one.priority for one in chosen if one is not None}

    assert priorities_of(20) == {2}
    for instance in first:
        instance.load = 5
    priorities_of(10)
    assert priorities_of(20) == {1}


def test_heavy_ones_that_are_full_do_not_hide_a_light_one() -> None:
    heavy = [Instance(f"heavy-{number}", weight=100.0, load=1, capacity=1) for number in range(3)]
    light = Instance("light", weight=0.01, capacity=1)
    scheduler, group = EdfScheduler(Random(1)), Group([*heavy, light])
    assert {scheduler.pick(Candidates(group, with_room)) for _ in range(5)} == {light}
