"""Recording: every second has its sample, whenever exactly the loop wakes up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.admin import sampler
from tests.cluster.conftest import seven


@pytest.mark.parametrize("early_s", [0.0004, 0.0, -0.02])
async def test_no_second_is_missed_when_the_loop_wakes_early_or_late(
    early_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, clock, seconds = seven(tmp_path), [1_000.3], []

    async def sleep(delay: float) -> None:
        if len(seconds) == 20:
            raise asyncio.CancelledError
        clock[0] += max(0.0, delay - early_s)

    def add(now: float, _: Any) -> None:
        seconds.append(int(now))
        clock[0] += 0.003  # work takes a while

    monkeypatch.setattr(sampler, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(sampler, "time", SimpleNamespace(time=lambda: clock[0], monotonic=lambda: clock[0]))
    monkeypatch.setattr(sampler, "RayMetrics", lambda: SimpleNamespace(tell=lambda *_: None))
    monkeypatch.setattr(controller.history, "add", add)
    with pytest.raises(asyncio.CancelledError):
        await sampler.sample_forever(controller)
    assert seconds == list(range(1_001, 1_021))
