"""The delay before a crashed process is replaced: none at first, doubling, bounded, and over after a stable run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.lifecycle.crash_backoff import CrashBackoff

DEFAULT = CrashBackoff()
POLICIES = st.builds(
    CrashBackoff,
    first_s=st.floats(0.1, 60),
    longest_s=st.floats(60, 3_600),
    stable_s=st.floats(1, 600),
)


@pytest.mark.parametrize(("crashes", "delay_s"), [(0, 0), (1, 0), (2, 5), (3, 10), (4, 20), (7, 160), (8, 300), (10**6, 300)])
def test_the_first_restart_is_immediate_and_then_the_delay_doubles_up_to_five_minutes(crashes: int, delay_s: float) -> None:
    assert DEFAULT.delay_s(crashes) == delay_s


@given(POLICIES, st.integers(0, 10_000))
def test_a_delay_never_shrinks_with_another_crash_at_most_doubles_and_stays_within_the_maximum(
    policy: CrashBackoff, crashes: int
) -> None:
    before, after = policy.delay_s(crashes), policy.delay_s(crashes + 1)
    assert before <= after <= policy.longest_s
    assert before == 0 or after <= 2 * before


@given(POLICIES, st.integers(0, 1_000), st.floats(0, 10_000))
def test_a_stable_run_ends_the_row_and_a_short_one_adds_to_it(policy: CrashBackoff, crashes: int, ran_s: float) -> None:
    count = policy.count(crashes, ran_s)
    assert count == (0 if ran_s >= policy.stable_s else crashes + 1)
    if count == 0:
        assert policy.delay_s(policy.count(count, 0.0)) == 0, "after a stable run, the next crash is restarted at once"


@given(POLICIES, st.integers(1, 400))
def test_an_instance_that_always_crashes_at_once_starts_rarely(policy: CrashBackoff, starts: int) -> None:
    """However long it goes on: at most one start per maximum delay, but for the doublings at the beginning."""
    crashes, clock = 0, 0.0
    for _ in range(starts):
        crashes = policy.count(crashes, 0.0)
        clock += policy.delay_s(crashes)
    doublings = sum(policy.delay_s(n) < policy.longest_s for n in range(starts + 1))
    assert clock >= policy.longest_s * (starts - doublings)
