"""The sampler: every second gets its sample, however exactly the loop wakes up, and an error costs one second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.admin.sampler import Sampler
from cluster.telemetry.history import InstanceSample, MetricHistory
from cluster.view import ClusterView
from tests.cluster.stand_in import seven

START = 1_000.3


class FakeTime:
    """A clock that `sleep` moves on, `early_s` too little; after `seconds` sleeps the loop is cancelled."""

    def __init__(self, early_s: float, seconds: int) -> None:
        self.now, self.early_s, self.left = START, early_s, seconds

    def clock(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        if not self.left:
            raise asyncio.CancelledError
        self.left -= 1
        self.now += max(0.0, delay_s - self.early_s)


class SlowHistory(MetricHistory):
    """Recording a sample takes 3 ms."""

    def __init__(self, time: FakeTime) -> None:
        super().__init__()
        self._time = time

    def add(self, now: float, samples: Iterable[InstanceSample]) -> None:
        super().add(now, samples)
        self._time.now += 0.003


async def sampled(folder: Path, time: FakeTime, export: Callable[[ClusterView], None]) -> list[float | None]:
    """CPU of instance-1, one value per second from the one after START on: None where there is no sample."""
    cluster = seven(folder)
    for record in cluster.registry:
        record.cpu_percent = 5.0
    view = replace(cluster.view, history=SlowHistory(time))
    seconds = time.left
    with pytest.raises(asyncio.CancelledError):
        await Sampler(view, cluster.recorder, export, time.clock, time.sleep).run_forever()
    read = view.history.read("my-agent", int(START) + seconds + 1, seconds, seconds, ("cpu",))
    assert read.times == [int(START) + 1 + number for number in range(seconds)]
    return next(values["cpu"] for key, values in read.rows.items() if key[3] == "instance-1")


@pytest.mark.parametrize("early_s", [0.0004, 0.0, -0.02])
async def test_no_second_is_missed_when_the_loop_wakes_early_or_late(early_s: float, tmp_path: Path) -> None:
    assert await sampled(tmp_path, FakeTime(early_s, 20), lambda view: None) == [5.0] * 20


async def test_ray_gets_the_view_with_the_first_sample_and_every_fifth_after_it(tmp_path: Path) -> None:
    exports: list[ClusterView] = []
    await sampled(tmp_path, FakeTime(0.0, 11), exports.append)
    assert len(exports) == 3


async def test_an_export_that_fails_does_not_stop_the_samples(tmp_path: Path) -> None:
    def fail(view: ClusterView) -> None:
        raise OSError

    assert await sampled(tmp_path, FakeTime(0.0, 12), fail) == [5.0] * 12
