"""Kill and drain on the Controller's request: only with the cluster's key, by POST, and never through a gateway."""

from __future__ import annotations

import os
import signal

import aiohttp
import pytest

from cluster.messages import DRAIN_PATH, KEY_HEADER, KILL_PATH
from swiftclaw import Agent
from tests.deployments.conftest import KEY, DataPlane

PATHS = (KILL_PATH, DRAIN_PATH)


@pytest.fixture
async def done(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the only instance did to itself."""
    agent = Agent("a", model="echo")
    found: list[object] = []

    @agent.on_message
    async def handle(message: str) -> str:
        return "ok"

    await plane.add(agent)
    plane.hosts["a-instance-1"].retire = lambda: found.append("left")
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


async def post(plane: DataPlane, path: str, key: str, method: str = "POST") -> int:
    port = plane.listeners["a-instance-1"].port
    headers = {KEY_HEADER.decode(): key}
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=aiohttp.ClientTimeout(2)) as answer,
    ):
        return answer.status


async def test_with_the_key_an_instance_drains_or_is_killed(plane: DataPlane, done: list[object]) -> None:
    assert await post(plane, DRAIN_PATH, KEY) == 202
    assert done == ["left"]
    await post(plane, KILL_PATH, KEY)
    assert done == ["left", (os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize("path", PATHS)
async def test_without_the_key_or_by_another_method_it_keeps_running(path: str, plane: DataPlane, done: list[object]) -> None:
    assert await post(plane, path, "guessed") == 403
    assert await post(plane, path, KEY, "GET") == 403
    assert done == []


@pytest.mark.parametrize("path", PATHS)
async def test_no_request_through_a_gateway_reaches_these_paths(path: str, plane: DataPlane, done: list[object]) -> None:
    for tried in (path, f"/agents/a{path}", f"/agents/a/..{path}", f"/agents/a/%2e%2e{path}", f"/agents/a/{path}"):
        async with plane.client.post(tried, headers={KEY_HEADER.decode(): KEY}) as answer:
            assert answer.status >= 400
    assert done == []
