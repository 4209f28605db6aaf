"""`maxConnectionsPerInstance` holds for what runs: a thread keeps its request's slot after the client has left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import aiohttp
import pytest

from deployments.instance.draining import drain_server
from deployments.instance.threads import Threads
from policies.lifecycle.draining import Drain, DrainTerms
from swiftclaw import Agent
from swiftclaw.agent import RequestInfo
from tests.deployments.conftest import DataPlane

PATIENCE_S = 20.0
NAME = "blocking"


class Blocking:
    """An agent whose handlers block their threads until `release` is set; it counts how many run."""

    def __init__(self) -> None:
        self.agent = Agent(NAME)
        self.release = threading.Event()
        self.began = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running = self.most = self.calls = 0
        self.requests: list[RequestInfo] = []
        self.saw_cancelled = threading.Event()

    def work(self) -> None:
        with self.lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.release()
        try:
            self.release.wait(PATIENCE_S)
        finally:
            with self.lock:
                self.running -= 1

    def handler(self, kind: str) -> Callable[..., Any]:
        def sync(message: str) -> str:
            if message != "quick":
                self.work()
            return "done"

        def generator(message: str) -> Iterator[str]:
            yield "first"
            if message != "quick":
                self.work()
            yield "last"

        def closing(message: str) -> Iterator[str]:
            try:
                yield "first"
                yield "second" * 1_000_000  # more than a connection takes: the client leaves between two items
            finally:
                if message != "quick":
                    self.work()

        async def to_thread(message: str) -> str:
            if message != "quick":
                await asyncio.to_thread(self.work)
            return "done"

        async def gave_up(message: str) -> str:
            if message != "quick":
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.to_thread(self.work), 0.2)
            return "done"

        return {"sync": sync, "generator": generator, "closing": closing, "to_thread": to_thread, "gave_up": gave_up}[kind]


@pytest.fixture
async def blocking() -> AsyncIterator[Blocking]:
    made = Blocking()
    asyncio.get_running_loop().set_default_executor(Threads("to-thread"))
    yield made
    made.release.set()


async def ask_and_leave(plane: DataPlane, within_s: float = 0.25) -> None:
    """Ask, and leave before the answer is there."""

    async def ask() -> None:
        body = {"message": "wait", "stream": True}
        async with plane.client.post(f"/agents/{NAME}/messages", json=body) as response:
            await response.read()

    with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
        await asyncio.wait_for(ask(), within_s)


async def quick(plane: DataPlane) -> int:
    async with plane.client.post(f"/agents/{NAME}/messages", json={"message": "quick"}) as response:
        await response.read()
        return response.status


async def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ["sync", "generator", "closing", "to_thread", "gave_up"])
@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_run_than_the_limit_allows_however_many_clients_leave(
    plane: DataPlane, blocking: Blocking, kind: str, limit: int
) -> None:
    plane.blocks[NAME] = {"limits": {"maxConnectionsPerInstance": limit, "connectionTimeout": "10s"}}
    blocking.agent.on_message(blocking.handler(kind))
    await plane.add(blocking.agent)
    host = plane.hosts[f"{NAME}-instance-1"]
    await asyncio.gather(*(ask_and_leave(plane, 0.2 + 0.05 * number) for number in range(10)))
    await until(lambda: blocking.running == limit)
    assert (blocking.most, host.in_flight) == (limit, limit)
    asked = asyncio.create_task(quick(plane))
    await asyncio.sleep(0.3)
    assert not asked.done()
    blocking.release.set()
    assert await asyncio.wait_for(asked, PATIENCE_S) == 200
    await until(lambda: plane.active() == 0)
    assert blocking.most == limit


async def leave_once(plane: DataPlane, clients: int, condition: Callable[[], bool]) -> None:
    """That many ask at once, and leave when the condition holds."""
    asking = [asyncio.create_task(ask_and_leave(plane, PATIENCE_S)) for _ in range(clients)]
    await until(condition)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_a_changed_limit_holds_at_once(plane: DataPlane, blocking: Blocking) -> None:
    plane.blocks[NAME] = {"limits": {"maxConnectionsPerInstance": 1}}
    blocking.agent.on_message(blocking.handler("sync"))
    await plane.add(blocking.agent)
    await leave_once(plane, 3, lambda: blocking.running == 1)
    assert blocking.most == 1
    plane.blocks[NAME] = {"limits": {"maxConnectionsPerInstance": 130}}
    plane.announce()
    await leave_once(plane, 140, lambda: blocking.running == 130)
    assert plane.hosts[f"{NAME}-instance-1"].in_flight == blocking.most == 130


async def test_what_nobody_abandoned_holds_no_slot(plane: DataPlane, blocking: Blocking) -> None:
    @blocking.agent.on_message
    async def in_background(message: str) -> str:
        asyncio.get_running_loop().run_in_executor(None, blocking.work)
        return "done"

    await plane.add(blocking.agent)
    assert await quick(plane) == 200
    assert await asyncio.to_thread(blocking.began.acquire, timeout=PATIENCE_S)
    await until(lambda: plane.active() == 0)


@pytest.mark.parametrize("kind", ["sync", "generator", "async"])
async def test_a_handler_can_see_that_its_client_has_left(plane: DataPlane, blocking: Blocking, kind: str) -> None:
    def wait_for_it(request: RequestInfo) -> None:
        blocking.requests.append(request)
        ends = time.monotonic() + PATIENCE_S
        while not request.cancelled.is_set() and time.monotonic() < ends:
            time.sleep(0.01)
        if request.cancelled:
            blocking.saw_cancelled.set()

    def sync(request: RequestInfo) -> str:
        wait_for_it(request)
        return "late"

    def generator(request: RequestInfo) -> Iterator[str]:
        yield "first"
        wait_for_it(request)
        yield "late"

    async def asynchronous(request: RequestInfo) -> str:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            blocking.requests.append(request)
            if request.cancelled:
                blocking.saw_cancelled.set()
        return "late"

    blocking.agent.on_message({"sync": sync, "generator": generator, "async": asynchronous}[kind])
    await plane.add(blocking.agent)
    await ask_and_leave(plane)
    assert await asyncio.to_thread(blocking.saw_cancelled.wait, PATIENCE_S)
    await until(lambda: plane.active() == 0)


async def test_a_request_that_is_answered_was_not_cancelled(plane: DataPlane, blocking: Blocking) -> None:
    @blocking.agent.on_message
    def handle(request: RequestInfo) -> str:
        blocking.requests.append(request)
        return "done"

    await plane.add(blocking.agent)
    assert await quick(plane) == 200
    assert not blocking.requests[0].cancelled


async def test_draining_waits_for_an_abandoned_thread(plane: DataPlane, blocking: Blocking) -> None:
    blocking.agent.on_message(blocking.handler("sync"))
    await plane.add(blocking.agent)
    await ask_and_leave(plane)
    host = plane.hosts[f"{NAME}-instance-1"]
    drained = asyncio.create_task(drain_server(host, Drain(DrainTerms(keep_sessions=False), time.monotonic())))
    await asyncio.sleep(1.5)
    assert (drained.done(), host.in_flight) == (False, 1)
    blocking.release.set()
    await asyncio.wait_for(drained, PATIENCE_S)
    assert host.in_flight == 0


@pytest.mark.parametrize("kind", ["sync", "generator"])
async def test_draining_ends_at_its_deadline_whatever_runs_and_the_client_gets_its_error(
    plane: DataPlane, blocking: Blocking, kind: str
) -> None:
    blocking.agent.on_message(blocking.handler(kind))
    await plane.add(blocking.agent)
    body = {"message": "wait", "stream": kind == "generator"}
    asked = asyncio.create_task(plane.client.post(f"/agents/{NAME}/messages", json=body))
    assert await asyncio.to_thread(blocking.began.acquire, timeout=PATIENCE_S)
    host = plane.hosts[f"{NAME}-instance-1"]
    terms = DrainTerms(drain_timeout_s=1.5, keep_sessions=False)
    await asyncio.wait_for(drain_server(host, Drain(terms, time.monotonic())), PATIENCE_S)
    text = await (await asyncio.wait_for(asked, PATIENCE_S)).text()
    assert ("instance_failed" if kind == "generator" else "request_timeout") in text
    assert (host.in_flight, blocking.running) == (1, 1)


async def test_a_thread_has_the_context_of_its_request(plane: DataPlane) -> None:
    agent, name = Agent(NAME), ContextVar("name", default="")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name.set(scope["path"])
        body = (await asyncio.to_thread(name.get)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    agent.mount(app)
    await plane.add(agent)
    async with plane.client.get(f"/agents/{NAME}/page") as response:
        assert (await response.text()).endswith("/page")


async def leave_after(plane: DataPlane, sent: bytes, received: int, wait_s: float) -> None:
    """Send a part of a request, read a part of the answer, and leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.gateway.port)
    writer.write(sent)
    with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
        await asyncio.wait_for(reader.read(received), wait_s)
    writer.transport.abort()


@pytest.mark.parametrize("kind", ["sync", "generator"])
async def test_no_slot_is_lost_at_whatever_point_clients_leave(plane: DataPlane, blocking: Blocking, kind: str) -> None:
    def sync(message: str) -> str:
        time.sleep(0.03)
        return "done"

    def generator(message: str) -> Iterator[str]:
        for piece in ("one", "two", "three"):
            time.sleep(0.01)
            yield piece

    plane.blocks[NAME] = {"limits": {"maxConnectionsPerInstance": 2, "connectionTimeout": "10s"}}
    blocking.agent.on_message(sync if kind == "sync" else generator)
    await plane.add(blocking.agent)
    body = b'{"message": "hi", "stream": true}'
    head = f"POST /agents/{NAME}/messages HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    cut = [leave_after(plane, whole[:length], 1, 0.01) for length in range(0, len(whole), 9)]
    late = [leave_after(plane, whole, received, number * 0.003) for number in range(40) for received in (1, 10_000)]
    await asyncio.gather(*cut, *late)
    await until(lambda: plane.active() == 0)
    assert [await quick(plane) for _ in range(4)] == [200] * 4
