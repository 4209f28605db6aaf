from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from aiohttp import web

from cluster.config.agent_settings import HealthCheck
from cluster.fleet.health_checks import JITTER, HealthChecker
from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import CHECK_PATH, KEY_HEADER, Registration

PATIENCE_S = 20.0
QUICK = HealthCheck(interval_s=0.05, timeout_s=5.0, unhealthy_threshold=2, healthy_threshold=2)


class Checked:
    """An instance whose answers to checks the test writes, and the Controller's side of it."""

    def __init__(self) -> None:
        self.answer: Any = {"healthy": True, "reason": ""}  # or a function that makes it
        self.at: list[float] = []  # when it was asked
        self.at_once = self.most_at_once = 0
        self.settings: HealthCheck | None = QUICK

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get(CHECK_PATH, self._check)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.registry, self.client = Registry(lambda: None), InstanceClient("the-key")
        self.record: InstanceRecord = self.registry.admit(
            Registration("a", "v1", "eu", "a.v1.eu", "x", "127.0.0.1", port, pid=1, node="n", started_at=0.0)
        )
        self.registry.observe("x")
        self.checks = HealthChecker(self.registry, self.client, lambda _: self.settings, Random(1))
        self.checks.attend(self.record)

    async def stop(self) -> None:
        await self.checks.close()
        await self.client.close()
        await self._runner.cleanup()

    async def _check(self, request: web.Request) -> web.StreamResponse:
        assert request.headers[KEY_HEADER.decode()] == "the-key"
        self.at.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = await self.answer() if callable(self.answer) else self.answer
        finally:
            self.at_once -= 1
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    async def until(self, state: str, reason: str = "") -> None:
        ends = time.monotonic() + PATIENCE_S
        while self.record.state != state or reason not in self.record.reason:
            assert time.monotonic() < ends, f"{self.record.state}: {self.record.reason}"
            await asyncio.sleep(0.01)

    async def asked(self, times: int) -> None:
        """From now on."""
        ends, all_told = time.monotonic() + PATIENCE_S, len(self.at) + times
        while len(self.at) < all_told:
            assert time.monotonic() < ends
            await asyncio.sleep(0.01)


@pytest.fixture
async def checked() -> AsyncIterator[Checked]:
    checked = Checked()
    await checked.start()
    yield checked
    await checked.stop()


async def _forever() -> None:
    await asyncio.Event().wait()


async def test_the_first_pass_makes_it_healthy_and_its_own_reason_is_told_when_it_is_not(checked: Checked) -> None:
    assert checked.record.state == "starting"
    await checked.until("healthy")
    assert len(checked.at) == 1
    checked.answer = {"healthy": False, "reason": "database"}
    await checked.until("unhealthy", "database")
    checked.answer = {"healthy": True, "reason": ""}
    await checked.until("healthy")
    assert checked.record.checked_at is not None and abs(checked.record.checked_at - time.time()) < PATIENCE_S


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": "fine"}, "the health check failed: KeyError"),
        ([], "the health check failed: TypeError"),
        (web.Response(text="not JSON"), "the health check failed: ContentTypeError"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_unhealthy_with_a_reason(checked: Checked, answer: Any, reason: str) -> None:
    async def fresh() -> Any:
        return web.Response(text=answer.text) if isinstance(answer, web.Response) else answer

    await checked.until("healthy")
    checked.answer = fresh
    await checked.until("unhealthy", reason)


async def test_a_check_that_hangs_is_unhealthy_after_the_timeout_and_is_never_joined_by_a_second(checked: Checked) -> None:
    await checked.until("healthy")
    checked.settings = replace(QUICK, timeout_s=0.2)
    checked.answer = _forever
    await checked.until("unhealthy", "timed out after 0.2 s")
    assert checked.most_at_once == 1


async def test_thresholds_are_taken_as_they_are_at_each_answer(checked: Checked) -> None:
    await checked.until("healthy")
    checked.settings = replace(QUICK, unhealthy_threshold=10_000)
    checked.answer = {"healthy": False, "reason": "database"}
    await checked.asked(5)
    assert checked.record.state == "healthy"
    checked.settings = replace(QUICK, unhealthy_threshold=6)
    await checked.until("unhealthy")
    checked.settings = replace(QUICK, healthy_threshold=10_000)
    checked.answer = {"healthy": True, "reason": ""}
    await checked.asked(5)
    assert checked.record.state == "unhealthy"
    checked.settings = QUICK
    await checked.until("healthy")


async def test_another_interval_holds_before_the_old_one_has_passed(checked: Checked) -> None:
    checked.settings = replace(QUICK, interval_s=3600.0)
    await checked.until("healthy")
    checked.answer = {"healthy": False, "reason": "database"}
    checked.settings = QUICK
    await checked.until("unhealthy")


async def test_checks_that_are_switched_off_leave_it_in_rotation_and_ask_nothing(checked: Checked) -> None:
    checked.answer = {"healthy": False, "reason": "database"}
    await checked.until("unhealthy")
    checked.settings = replace(QUICK, enabled=False)
    await checked.until("healthy")
    asked = len(checked.at)
    await asyncio.sleep(0.3)
    assert len(checked.at) <= asked


async def test_intervals_vary_by_a_tenth_so_that_instances_are_not_asked_in_step(checked: Checked) -> None:
    checked.settings = replace(QUICK, interval_s=0.3)
    await checked.asked(6)
    gaps = [after - before for before, after in zip(checked.at[1:], checked.at[2:], strict=False)]
    assert min(gaps) >= 0.3 * (1 - JITTER) - 0.01
    assert max(gaps) - min(gaps) > 0.003, "the same every time"


async def test_an_agent_that_is_unknown_for_a_time_is_checked_afterwards(checked: Checked) -> None:
    await checked.until("healthy")
    checked.settings = None
    before = len(checked.at)
    await asyncio.sleep(0.3)
    assert len(checked.at) - before <= 1, "nobody says how"
    checked.answer, checked.settings = {"healthy": False, "reason": "ill"}, QUICK
    await checked.until("unhealthy", "ill")
