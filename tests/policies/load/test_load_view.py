"""The load view: own requests at once and exactly, others' by the newest word, believed less the older it is."""

from __future__ import annotations

from math import exp, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Instance
from policies.load.load_view import FIRST_USUAL_S, NEVER, REFRESHES, REMEMBERED, SLICE, LoadView


def fleet(size: int) -> list[Instance]:
    return [Instance(f"instance-{number}") for number in range(1, size + 1)]


def loads(instances: list[Instance]) -> list[float]:
    return [instance.load for instance in instances]


def refreshed(view: LoadView, instances: list[Instance], now: float) -> list[float]:
    """With the mean of what was heard until `now`: the first round takes it, the second writes with it."""
    view.refresh(instances, now)
    view.refresh(instances, now + view.tau_s / REFRESHES)
    return loads(instances)


def test_nothing_known_is_no_load() -> None:
    instances = fleet(3)
    assert refreshed(LoadView(), instances, 1.0) == [0, 0, 0]


def test_own_requests_count_at_once() -> None:
    view, (instance,) = LoadView(), fleet(1)
    view.sent(instance)
    view.sent(instance)
    assert (instance.load, view.own(instance)) == (2, 2)
    view.done(instance)
    assert (instance.load, view.own(instance)) == (1, 1)


def test_a_report_is_taken_at_its_word_and_own_requests_count_on_top_of_it() -> None:
    view, (instance,) = LoadView(), fleet(1)
    view.sent(instance)
    view.reported(instance, 5, 1.0)
    assert instance.load == 5
    view.sent(instance)
    assert instance.load == 6
    view.done(instance)
    view.done(instance)
    assert instance.load == 4


def test_the_newest_word_counts_wherever_it_comes_from() -> None:
    view, (instance,) = LoadView(), fleet(1)
    view.sent(instance)
    view.reported(instance, 5, 1.0)
    view.exchanged(instance, 2, 2.0)
    assert instance.load == 3
    view.exchanged(instance, 9, 1.5)  # late
    assert instance.load == 3
    view.reported(instance, 8, 3.0)
    assert instance.load == 8


def test_a_report_below_ones_own_count_says_that_the_others_have_nothing_there() -> None:
    view, (instance,) = LoadView(), fleet(1)
    for _ in range(3):
        view.sent(instance)
    view.reported(instance, 1, 1.0)
    assert instance.load == 3


def test_what_was_heard_fades_to_the_fleets_mean_in_the_time_of_an_answer() -> None:
    view, (busy, idle) = LoadView(), (instances := fleet(2))
    view.reported(busy, 8, 0.0)
    view.reported(idle, 0, 0.0)
    view.refresh(instances, 0.0)
    for seconds in (0.5, 1.0, 3.0):
        view.refresh(instances, seconds)
        left = exp(-seconds / FIRST_USUAL_S)
        assert loads(instances) == pytest.approx([4 + 4 * left, 4 - 4 * left])


def test_one_never_heard_of_is_believed_to_have_what_the_others_have() -> None:
    view, instances = LoadView(), fleet(3)
    view.reported(instances[0], 6, 1.0)
    view.reported(instances[1], 2, 1.0)
    assert refreshed(view, instances, 1.0)[2] == 4
    newcomer = Instance("instance-4")
    view.sent(newcomer)
    assert newcomer.load == 5


def test_one_that_has_gone_silent_does_not_weigh_on_the_mean_for_ever() -> None:
    view, instances = LoadView(), fleet(3)
    view.reported(instances[0], 100, 0.0)
    for instance in instances[1:]:
        view.reported(instance, 2, 60.0)
    assert refreshed(view, instances, 60.0)[0] == pytest.approx(2)


def test_believing_in_full_fades_nothing() -> None:
    view, instances = LoadView(fade=inf), fleet(3)
    view.reported(instances[0], 6, 0.0)
    view.answered(0.1)
    view.refresh(instances, 1e6)
    assert loads(instances) == [6, 0, 0]


def test_the_fading_time_follows_the_answers() -> None:
    view = LoadView()
    assert view.tau_s == FIRST_USUAL_S
    for _ in range(10):
        view.answered(30.0)
    assert view.tau_s == pytest.approx(30.0)
    for _ in range(5 * REMEMBERED):
        view.answered(2.0)
    assert view.tau_s == pytest.approx(2.0, rel=0.1)
    for _ in range(50 * REMEMBERED):
        view.answered(0.0)
    assert 0 < view.tau_s < 1e-3


def test_it_looks_at_an_instance_again_only_after_an_eighth_of_the_fading_time() -> None:
    view, (busy, idle) = LoadView(), (instances := fleet(2))
    view.reported(busy, 8, 0.0)
    view.reported(idle, 0, 0.0)
    view.refresh(instances, 0.0)
    view.refresh(instances, 0.99 / REFRESHES)
    assert loads(instances) == [8, 0]
    view.refresh(instances, 1 / REFRESHES)
    assert busy.load < 8
    assert idle.load > 0


def test_a_large_fleet_is_refreshed_a_slice_at_a_time() -> None:
    view, instances = LoadView(), fleet(3 * SLICE + 1)
    for number, instance in enumerate(instances):
        view.reported(instance, number % 2, 0.0)
    for _ in range(4):
        view.refresh(instances, 0.0)
    before = loads(instances)
    changed = []
    for _ in range(5):
        view.refresh(instances, 1.0)
        changed.append(sum(now != then for now, then in zip(loads(instances), before, strict=True)))
    assert changed == [SLICE, 2 * SLICE, 3 * SLICE, 3 * SLICE + 1, 3 * SLICE + 1]


def test_a_fleet_that_shrinks_in_the_middle_of_a_round_is_still_refreshed() -> None:
    view, instances = LoadView(), fleet(3 * SLICE)
    for now in (0.0, 0.0):
        view.refresh(instances, now)
    few = instances[:2]
    view.reported(few[0], 4, 0.0)
    view.reported(few[1], 0, 0.0)
    for now in (0.0, 1.0, 2.0, 3.0):
        view.refresh(few, now)
    assert loads(few) == pytest.approx([2, 2], abs=0.2)


def test_a_new_process_under_an_old_name_starts_with_nothing_and_is_not_charged_for_the_old_ones_requests() -> None:
    view, old, new = LoadView(), Instance("instance-1"), Instance("instance-1")
    view.sent(old)
    view.reported(old, 7, 1.0)
    view.forget(old)
    view.sent(new)
    view.done(old)
    assert (view.own(old), view.own(new), new.load) == (0, 1, 1)
    view.forget(Instance("never seen"))


def test_it_says_what_it_knows() -> None:
    view, (instance,) = LoadView(), fleet(1)
    assert repr(view) == "<LoadView, fading in 1 s: no instances>"
    view.reported(instance, 3, 1.0)
    assert repr(view) == "<LoadView, fading in 1 s: instance-1 3.0>"


events = st.lists(
    st.tuples(
        st.sampled_from(["sent", "done", "reported", "exchanged", "answered", "refresh", "forget"]),
        st.integers(0, 3),
        st.integers(0, 50),
        st.floats(0, 10),
    ),
    max_size=60,
)


@given(events)
def test_the_load_is_never_below_ones_own_requests(happened: list[tuple[str, int, int, float]]) -> None:
    view, instances, now = LoadView(), fleet(4), 0.0
    for what, which, count, seconds in happened:
        now += seconds
        instance = instances[which]
        if what in ("reported", "exchanged"):
            getattr(view, what)(instance, count, now)
        elif what == "answered":
            view.answered(seconds)
        elif what == "refresh":
            view.refresh(instances, now)
        else:
            getattr(view, what)(instance)
        for each in instances:
            assert view.own(each) >= 0
            assert what == "forget" or each.load >= view.own(each)


@given(events)
def test_a_single_gateway_sees_exactly_its_own_requests(happened: list[tuple[str, int, int, float]]) -> None:
    view, instances, now = LoadView(), fleet(4), 0.0
    own = [0] * 4
    for what, which, _, seconds in happened:
        now += seconds
        if what == "sent":
            view.sent(instances[which])
            own[which] += 1
        elif what == "done" and own[which]:
            view.done(instances[which])
            own[which] -= 1
        elif what == "reported":
            view.reported(instances[which], own[which], now)
        elif what == "answered":
            view.answered(seconds)
        view.refresh(instances, now)
        assert loads(instances) == own


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.floats(0, 100))
def test_fading_stays_between_what_was_heard_and_the_mean(counts: list[int], age: float) -> None:
    view, instances = LoadView(), fleet(len(counts))
    for instance, count in zip(instances, counts, strict=True):
        view.reported(instance, count, 0.0)
    view.refresh(instances, 0.0)
    view.refresh(instances, age)
    mean = sum(counts) / len(counts)
    for instance, count in zip(instances, counts, strict=True):
        assert min(count, mean) - 1e-9 <= instance.load <= max(count, mean) + 1e-9


def test_it_knows_when_a_load_was_last_reported() -> None:
    view, (one, other) = LoadView(), fleet(2)
    view.reported(one, 3, 5.0)
    assert view.reported_at(one) == 5.0
    assert view.reported_at(other) == NEVER
