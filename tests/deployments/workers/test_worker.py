"""A worker in the process of the test: what it tells its gateway, and when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from cluster.config import parse
from cluster.transport.listener import bind
from deployments.gateway.place import GatewayPlace
from deployments.workers import worker as module
from deployments.workers.link import Alive, Begin, Counted, Find, Found, Leaving, Link, Message, Ready, Stop
from deployments.workers.worker import Worker
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import streaming, until
from tests.deployments.workers.control import Control

PATIENCE_S = 30.0


class Gateway:
    """The other end of the link."""

    def __init__(self, link: Link, control: Control) -> None:
        self.link, self.control = link, control
        self.heard: list[Message] = []
        self.finds = True
        self._task = asyncio.create_task(self._hear())

    async def _hear(self) -> None:
        while (message := await self.link.receive()) is not None:
            self.heard.append(message)
            if isinstance(message, Find):
                self.link.send(Found(self.control.server.address if self.finds else None))

    def has(self, kind: type) -> bool:
        return any(isinstance(message, kind) for message in self.heard)

    def close(self) -> None:
        self._task.cancel()
        self.link.close()


class Running:
    def __init__(self, worker: Worker, gateway: Gateway, listening: socket.socket, task: asyncio.Task[None]) -> None:
        self.worker, self.gateway, self.listening, self.task = worker, gateway, listening, task

    async def ends(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a worker does to its process is taken back."""
    monkeypatch.setattr(module, "keep_what_is_here", lambda: None)
    root, ours = logging.getLogger(), logging.getLogger("swiftclaw")
    handlers, level = list(root.handlers), ours.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    ours.setLevel(level)


@pytest.fixture
async def control(plane: DataPlane) -> AsyncIterator[Control]:
    control = Control(plane)
    await control.server.open("127.0.0.1")
    yield control
    await control.server.close()


@pytest.fixture
async def running(plane: DataPlane, control: Control, tmp_path: Path) -> AsyncIterator[Running]:
    ours, theirs = socket.socketpair()
    listening = bind("127.0.0.1", 0, shared=True)
    settings = parse({"agents": {"a": {"agent": "m:x"}}}, Path("/")).gateways[0]
    place = GatewayPlace("g7-1", "gateway.local", settings, f"test-{uuid4().hex}", "node", "127.0.0.1", tmp_path, "g7")
    await plane.add(streaming(["one", "two"]))
    worker = Worker(await Link.over(theirs), orphan_s=0.1)
    task = asyncio.create_task(worker.run())
    gateway = Gateway(await Link.over(ours), control)
    gateway.link.send(Begin(place, os.dup(listening.fileno())))
    await until(lambda: gateway.has(Ready), PATIENCE_S)
    yield Running(worker, gateway, listening, task)
    gateway.close()
    await asyncio.wait_for(task, PATIENCE_S)
    listening.close()


async def ask(running: Running) -> Any:
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{running.url}/agents/streamer/messages", json={"message": "hello"}) as response,
    ):
        assert response.status == 200
        return (await response.json())["reply"]


async def test_it_answers_reports_and_stops(running: Running, control: Control) -> None:
    assert await ask(running) == "onetwo"
    await until(lambda: running.gateway.has(Alive) and running.gateway.has(Counted), PATIENCE_S)
    running.gateway.link.send(Stop())
    await running.ends()
    assert control.left == ["g7-1"]
    assert not running.gateway.has(Leaving)


async def test_when_it_is_terminated_it_says_so_once(running: Running, control: Control) -> None:
    running.worker.terminate()
    running.worker.terminate()
    await running.ends()
    await until(lambda: running.gateway.has(Leaving))
    assert sum(isinstance(message, Leaving) for message in running.gateway.heard) == 1
    assert control.left == ["g7-1"]


async def test_without_its_gateway_it_ends_after_a_while(running: Running, control: Control) -> None:
    running.gateway.close()
    await running.ends()
    assert control.left == ["g7-1"]


async def test_a_stopping_worker_whose_gateway_ends_does_not_wait_for_its_streams(plane: DataPlane, running: Running) -> None:
    """Serve ends a replica that does not stop in time, and so its workers."""
    endless = streaming(["one"], forever=True)
    endless.name = "endless"
    await plane.add(endless)
    async with aiohttp.ClientSession() as client:
        await until(lambda: "endless" in plane.agents.pools)
        body = {"message": "hello", "stream": True}

        async def streamed() -> aiohttp.ClientResponse:
            while (response := await client.post(f"{running.url}/agents/endless/messages", json=body)).status != 200:
                await asyncio.sleep(0.05)  # its next snapshot has the agent
            return response

        response = await asyncio.wait_for(streamed(), PATIENCE_S)
        await response.content.readany()
        running.gateway.link.send(Stop())
        await until(lambda: running.worker._stop.is_set())
        running.gateway.close()
        await running.ends()


async def test_it_does_not_find_the_controller_while_its_gateway_does_not(running: Running) -> None:
    running.gateway.finds = False
    with pytest.raises(ConnectionError, match="the Controller is away"):
        await running.worker._find()
    running.gateway.close()
    await until(running.worker._alone.is_set, PATIENCE_S)
    with pytest.raises(ConnectionError, match="the Controller is away"):
        await running.worker._find()
    assert running.worker._lost.is_set()


async def test_one_that_is_never_told_to_begin_ends_with_its_gateway() -> None:
    ours, theirs = socket.socketpair()
    task = asyncio.create_task(Worker(await Link.over(theirs)).run())
    ours.close()
    await asyncio.wait_for(task, PATIENCE_S)
