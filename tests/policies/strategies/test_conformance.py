"""What every strategy of the registry keeps to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import STRATEGIES
from policies.base import Instance, Options, Request

REGIONS = ("us-east-1", "eu-west-1", "nowhere")
REQUEST = Request(agent="agent", region="eu-west-1", now=1.0)
instances = st.lists(
    st.builds(
        Instance,
        id=st.just(""),
        region=st.sampled_from(REGIONS),
        priority=st.integers(1, 2),
        weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        load=st.integers(0, 5),
        slowness=st.sampled_from([0.1, 1.0, 4.0]),
    ),
    max_size=90,
)

pytestmark = pytest.mark.parametrize("name", list(STRATEGIES))


def numbered(fleet: list[Instance]) -> list[Instance]:
    for number, instance in enumerate(fleet, start=1):
        instance.id = f"instance-{number}"
    return fleet


def state(fleet: list[Instance]) -> list[tuple[object, ...]]:
    return [tuple(getattr(instance, field) for field in Instance.__slots__) for instance in fleet]


def test_empty_gives_none(name: str) -> None:
    assert STRATEGIES[name](Random(1)).pick([], REQUEST) is None


def test_one_gives_it(name: str) -> None:
    only = Instance("instance-1", load=99, slowness=10.0)
    strategy = STRATEGIES[name](Random(1), Options())
    assert [strategy.pick([only], REQUEST) for _ in range(3)] == [only] * 3


@given(fleet=instances, seed=st.integers(0, 9), data=st.data())
def test_only_members_with_a_weight_and_nothing_is_changed(
    name: str, fleet: list[Instance], seed: int, data: st.DataObject
) -> None:
    strategy = STRATEGIES[name](Random(seed))
    numbered(fleet)
    before = state(fleet)
    for _ in range(4):
        left_out = data.draw(st.sets(st.sampled_from(fleet).map(lambda instance: instance.id), max_size=5)) if fleet else set()
        eligible = [instance for instance in fleet if instance.id not in left_out]
        chosen = strategy.pick(eligible, REQUEST)
        if any(instance.weight for instance in eligible):
            assert chosen in eligible
            assert chosen is not None
            assert chosen.weight > 0
        else:
            assert chosen is None
    assert state(fleet) == before


def test_no_weights_gives_none(name: str) -> None:
    fleet = [Instance(f"instance-{number}", weight=0.0, region=REGIONS[number % 2]) for number in range(200)]
    assert STRATEGIES[name](Random(1)).pick(fleet, REQUEST) is None


def test_the_only_one_with_a_weight_is_found_in_a_large_fleet(name: str) -> None:
    fleet = [Instance(f"instance-{number}", weight=float(number == 150)) for number in range(300)]
    strategy = STRATEGIES[name](Random(1))
    assert {strategy.pick(fleet, REQUEST) for _ in range(20)} == {fleet[150]}


def test_it_takes_a_tuple_as_well_as_a_list(name: str) -> None:
    fleet = tuple(Instance(f"instance-{number}") for number in range(5))
    strategy = STRATEGIES[name](Random(1))
    assert {strategy.pick(fleet, REQUEST) for _ in range(200)} == set(fleet)


@pytest.mark.no_cover  # 100,000 picks of code that the others run too
@pytest.mark.parametrize("size", [5, 100])
def test_the_order_of_the_input_does_not_matter(name: str, size: int) -> None:
    """Equal instances get equal shares, in whatever order they come, the first and the last as well."""
    fleet = [Instance(f"instance-{number}") for number in range(size)]
    shuffler = Random(5)
    for arrange in (list, lambda members: members[::-1], lambda members: shuffler.sample(members, len(members))):
        strategy = STRATEGIES[name](Random(7))
        counts = Counter(strategy.pick(arrange(fleet), REQUEST) for _ in range(60 * size))
        assert len(counts) == size
        assert all(25 <= count <= 100 for count in counts.values())


def test_the_same_seed_gives_the_same_answers(name: str) -> None:
    def answers() -> list[str]:
        rng = Random(3)
        fleet = [Instance(f"instance-{number}", weight=1 + number % 2) for number in range(9)]
        strategy = STRATEGIES[name](rng)
        picked = []
        for _ in range(50):
            chosen = strategy.pick(fleet, REQUEST)
            assert chosen is not None
            chosen.load += 1
            picked.append(chosen.id)
        return picked

    assert answers() == answers()


def test_work_that_piles_up_is_shared_by_weight(name: str) -> None:
    """Nothing ends: loads (and shares) follow the weights."""
    fleet = [Instance(f"instance-{number}", weight=weight) for number, weight in enumerate((1.0, 1.0, 2.0, 4.0))]
    strategy = STRATEGIES[name](Random(2))
    for _ in range(800):
        chosen = strategy.pick(fleet, REQUEST)
        assert chosen is not None
        chosen.load += 1
    assert [instance.load for instance in fleet] == pytest.approx([100, 100, 200, 400], abs=2)
