"""The sampler: every second gets its sample, however exactly the loop wakes up, and an error costs one second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.admin.sampler import Sampler, record_counts, samples
from cluster.messages import Observation
from cluster.telemetry.history import MetricHistory
from cluster.telemetry.samples import InstanceSample, RefusalSample, WeightSample
from cluster.view import ClusterView
from policies.sessions.moved import Cause
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

    def add(self, now: float, samples: Iterable[InstanceSample | RefusalSample | WeightSample]) -> None:
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
    assert read.window.times == [int(START) + 1 + number for number in range(seconds)]
    return next(values["cpu"] for key, values in read.instances.items() if key[3] == "instance-1")


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


def test_a_sample_has_every_instance_and_each_agents_refusals_and_shares(tmp_path: Path) -> None:
    cluster = seven(tmp_path)
    cluster.serve_second(0.0, 3)
    refusals = {("my-agent", 429): 4, ("my-agent", 503): 2}
    cluster.totals.add(Observation("g1", {}, refusals, queued={"my-agent": 6}), 0.0)
    taken = list(samples(cluster.view))
    instances = [one for one in taken if isinstance(one, InstanceSample)]
    assert [(one.key[3], one.requests) for one in instances] == [(f"instance-{number}", 3) for number in range(1, 8)]
    assert taken[7:] == [RefusalSample("my-agent", 2, 4, 6), WeightSample("my-agent", "v1", 100.0)]


def test_moved_sessions_become_one_event_per_agent_and_cause_whichever_gateway_moved_them(tmp_path: Path) -> None:
    cluster = seven(tmp_path)
    for gateway, count in (("g1", 2), ("g2", 3)):
        moved: dict[tuple[str, Cause], int] = {("my-agent", "died"): count, ("my-agent", "drained"): 1}
        cluster.totals.add(Observation(gateway, {}, moved_sessions=moved), 0.0)
    for second in range(20):
        record_counts(cluster.view, cluster.recorder, float(second))
    assert [(event.agent, event.details) for event in cluster.view.events.find(kind="session")] == [
        ("my-agent", {"cause": "died", "count": 5}),
        ("my-agent", {"cause": "drained", "count": 2}),
    ]
