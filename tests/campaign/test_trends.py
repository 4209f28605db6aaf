"""A leak is a trend, noise is none: also noise whose neighbours resemble each other."""

from __future__ import annotations

from random import Random

import pytest

from tests.campaign.record import Record, Request, Size
from tests.campaign.trends import Trend, line, trends

EVERY_S, SAMPLES = 10.0, 270  # three quarters of an hour


def test_a_line_without_noise_is_found_exactly() -> None:
    start, slope, error = line([0, 1, 2, 3], [5, 7, 9, 11])
    assert (start, slope, error) == pytest.approx((5, 2, 0))


@pytest.mark.parametrize(("times", "values"), [([0, 1], [1, 2]), ([1, 1, 1], [1, 2, 3])])
def test_what_makes_no_line_is_an_error(times: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        line(times, values)


def wandering(rng: Random, persistence: float) -> list[float]:
    """Noise in which a sample resembles the one before."""
    values, value = [], 0.0
    for _ in range(SAMPLES):
        value = persistence * value + rng.gauss(0, 1)
        values.append(value)
    return values


@pytest.mark.parametrize("persistence", [0.0, 0.6])
def test_the_error_covers_what_noise_alone_does(persistence: float) -> None:
    """Two errors should hold about 95 of 100; with so few independent samples some less."""
    times = [EVERY_S * number for number in range(SAMPLES)]
    outside = 0
    for seed in range(100):
        _, slope, error = line(times, wandering(Random(seed), persistence))
        outside += abs(slope) > 2 * error
    assert outside <= 15


def life(rng: Random, per_hour: float, *, pid: int = 1, role: str = "gateway") -> list[Size]:
    """Memory that grows by so many MiB per hour, besides its noise and a warm-up."""
    return [
        Size(
            at=(at := EVERY_S * number),
            pid=pid,
            role=role,
            rss_kib=round(1024 * (160 + 20 * min(1.0, at / 120) + per_hour * at / 3600 + rng.gauss(0, 0.5))),
            files=40 + rng.randrange(5),
            threads=30,
            cpu_s=0.2 * at,
            tasks=25 + rng.randrange(6),
        )
        for number in range(SAMPLES)
    ]


def growing(sizes: list[Size]) -> list[str]:
    return [trend.what for trend in trends(Record(sizes=sizes)) if trend.grows]


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_memory_is_found_and_a_warm_up_is_none(seed: int) -> None:
    assert growing(life(Random(seed), 20.0)) == ["gateway 1: memory"]
    assert growing(life(Random(seed), 0.0)) == []


def test_a_leak_of_files_or_tasks_is_found() -> None:
    sizes = life(Random(1), 0.0)
    for number, size in enumerate(sizes):
        size.files += number // 10
        size.tasks += number // 5
    assert growing(sizes) == ["gateway 1: file descriptors", "gateway 1: tasks"]


def test_a_process_that_lived_shortly_has_no_trend() -> None:
    assert trends(Record(sizes=life(Random(1), 500.0)[:60])) == []


def test_processes_are_not_mixed() -> None:
    small, large = life(Random(1), 0.0), life(Random(2), 0.0, pid=2)
    for size in large:
        size.at, size.rss_kib = size.at + 600, size.rss_kib + 500_000
    assert growing([*small, *large]) == []


def plain(at: float, took_s: float) -> Request:
    return Request("r", "plain", began=at, ended=at + took_s, outcome="ok")


def test_latency_that_grows_minute_by_minute_is_found() -> None:
    rng = Random(3)
    steady = [plain(0.5 * number, 0.03 + rng.random() / 100) for number in range(5000)]
    slower = [plain(0.5 * number, 0.03 + number / 500_000 + rng.random() / 100) for number in range(5000)]
    assert [trend.what for trend in trends(Record(requests=steady)) if trend.grows] == []
    assert len([trend for trend in trends(Record(requests=slower)) if trend.grows]) == 2


def test_a_trend_reads_as_a_sentence() -> None:
    assert str(Trend("gateway 1: memory", "MiB", 2520.0, 180.0, 20.0, 2.0)) == (
        "gateway 1: memory: +20 ± 4 MiB per hour, from 180, over 42 min GROWS"
    )
