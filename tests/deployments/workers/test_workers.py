"""Workers are processes: here they are started, killed, frozen and orphaned, with a Controller's control port, without Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psutil
import pytest

from cluster.config import TlsSettings, parse
from cluster.messages import Observation
from cluster.transport.listener import bind
from deployments.gateway.place import GatewayPlace
from deployments.workers import supervisor
from deployments.workers.supervisor import WorkerFailed, Workers
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import streaming, until
from tests.deployments.workers.control import Control

PATIENCE_S = 60.0


@pytest.fixture
async def control(plane: DataPlane) -> AsyncIterator[Control]:
    control = Control(plane)
    await control.server.open("127.0.0.1")
    yield control
    await control.server.close()


@pytest.fixture
def place(tmp_path: Path) -> GatewayPlace:
    settings = parse({"agents": {"a": {"agent": "m:x"}}}, Path("/")).gateways[0]
    return GatewayPlace("g7", "gateway.local", settings, f"test-{uuid4().hex}", "node", "127.0.0.1", tmp_path)


def bound(count: int) -> list[socket.socket]:
    """Sockets of one free port."""
    first = bind("127.0.0.1", 0, shared=True)
    return [first, *(bind("127.0.0.1", first.getsockname()[1], shared=True) for _ in range(count - 1))]


@asynccontextmanager
async def running(place: GatewayPlace, control: Control, count: int = 1, **options: Any) -> AsyncIterator[Workers]:
    workers = Workers(place, bound(count), control.find, **options)
    try:
        await workers.start()
        yield workers
    finally:
        await workers.kill()


def url(workers: Workers, path: str) -> str:
    return f"http://127.0.0.1:{workers._listening[0].getsockname()[1]}{path}"


def pids(workers: Workers) -> list[int]:
    return [worker.process.pid for worker in workers._running.values()]


async def send(workers: Workers, agent: str = "echo") -> str:
    """One request on a connection of its own; what the agent answered."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client,
        client.post(url(workers, f"/agents/{agent}/messages"), json={"message": "hello"}) as response,
    ):
        assert response.status == 200, await response.text()
        return str((await response.json())["reply"])


@pytest.fixture
def echo() -> Agent:
    agent = Agent("echo")

    @agent.on_message
    async def answer(message: str) -> str:
        return f"you said {message}"

    return agent


async def test_workers_answer_count_and_are_gateways_of_their_own(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent
) -> None:
    await plane.add(echo, 2)
    exported: list[Observation] = []
    async with running(place, control, 2, export=exported.append) as workers:
        assert {await send(workers) for _ in range(12)} == {"you said hello"}
        names = {worker.name for worker in workers._running.values()}
        assert len(names) == 2
        await until(lambda: control.answered(names) == 12)
        assert {hello.worker_of for hello in control.hellos.values()} == {"g7"}
        assert {hello.pid for hello in control.hellos.values()} == set(pids(workers))
        await until(lambda: {one.gateway for one in exported} == names)
        await workers.stop()
        assert set(control.left) == names
    assert list(place.logs.glob("access_*")) == []  # not switched on for the agent


async def test_a_killed_worker_is_replaced_and_no_connection_is_refused(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent
) -> None:
    """With one worker, nobody else listens: what arrives waits in the socket, which its gateway keeps."""
    await plane.add(echo)
    ended: list[str] = []

    async def hear(name: str) -> None:
        ended.append(name)
        raise ConnectionError("the Controller is away")  # and the next worker starts all the same

    async with running(place, control, ended=hear) as workers:
        for round_ in range(1, 3):
            (before,) = pids(workers)
            os.kill(before, signal.SIGKILL)
            assert await asyncio.wait_for(send(workers), PATIENCE_S) == "you said hello"
            assert before not in pids(workers)
            assert len(ended) == round_
        assert len(set(ended)) == 2  # a name is used once: counts belong to names


async def test_a_worker_that_is_terminated_leaves_its_socket_to_the_next_one_and_finishes_what_it_has(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent
) -> None:
    """SIGTERM is not the end of the gateway: no handshake is dropped, and none waits for the last stream to end."""
    seen: list[str] = []
    await plane.add(echo)
    await plane.add(streaming(["one"], forever=True, seen=seen))
    async with running(place, control) as workers, aiohttp.ClientSession() as client:
        body = {"message": "hello", "stream": True}
        async with client.post(url(workers, "/agents/streamer/messages"), json=body) as response:
            await response.content.readany()
            (before,) = pids(workers)
            os.kill(before, signal.SIGTERM)
            for _ in range(3):
                assert await asyncio.wait_for(send(workers), PATIENCE_S) == "you said hello"
            assert before not in pids(workers)
            for _ in range(5):
                assert await response.content.readany()
            assert psutil.pid_exists(before)
        await until(lambda: not psutil.pid_exists(before), PATIENCE_S)
        assert await asyncio.wait_for(send(workers), PATIENCE_S) == "you said hello"
        assert workers._leaving == {}


async def test_stopping_finishes_what_is_in_flight(plane: DataPlane, control: Control, place: GatewayPlace) -> None:
    seen: list[str] = []
    await plane.add(streaming(["one"], forever=True, seen=seen))
    async with running(place, control) as workers, aiohttp.ClientSession() as client:
        body = {"message": "hello", "stream": True}
        async with client.post(url(workers, "/agents/streamer/messages"), json=body) as response:
            await response.content.readany()
            stopping = asyncio.create_task(workers.stop())
            await until(lambda: control.hellos and _refuses(workers))
            for _ in range(5):
                assert await response.content.readany()
            assert not stopping.done()
        await asyncio.wait_for(stopping, PATIENCE_S)
        await until(lambda: seen)  # the client has left, so the work has ended
        assert list(control.left) == list(control.hellos)


def _refuses(workers: Workers) -> bool:
    """Whether new connections are no longer accepted: handshakes are dropped."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(("127.0.0.1", workers._listening[0].getsockname()[1]))
        except OSError:
            return True
    return False


async def test_a_frozen_worker_is_replaced(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FROZEN_S", 3.0)
    await plane.add(echo)
    async with running(place, control) as workers:
        (frozen,) = pids(workers)
        os.kill(frozen, signal.SIGSTOP)
        assert await asyncio.wait_for(send(workers), PATIENCE_S) == "you said hello"
        assert pids(workers) != [frozen]
        assert not psutil.pid_exists(frozen)


async def test_a_worker_that_is_frozen_while_it_stops_is_killed(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FROZEN_S", 3.0)
    await plane.add(echo)
    async with running(place, control, 2) as workers:
        frozen, _ = pids(workers)
        os.kill(frozen, signal.SIGSTOP)
        await asyncio.wait_for(workers.stop(), PATIENCE_S)
        assert not psutil.pid_exists(frozen)
        assert workers._running == {}


async def test_an_orphan_serves_until_the_controller_is_away(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent
) -> None:
    """The gateway that started it was killed: until another one listens, nothing is refused."""
    await plane.add(echo)
    async with running(place, control) as workers:
        (worker,) = workers._running.values()
        assert os.getpgid(worker.process.pid) == worker.process.pid  # Ray kills the group of a replica that has died
        workers._closing = True  # a gateway that is dead starts none in its place
        worker.link.close()
        for _ in range(5):
            assert await asyncio.wait_for(send(workers), PATIENCE_S) == "you said hello"
        await control.server.close()
        assert await asyncio.to_thread(worker.process.wait, PATIENCE_S) == 0


async def test_a_worker_that_cannot_start_is_named(
    control: Control, place: GatewayPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    tls = TlsSettings(cert="/no/such/cert.pem", key="/no/such/key.pem")
    broken = replace(place, settings=replace(place.settings, tls=tls))
    with pytest.raises(WorkerFailed, match=r"ended with status 1 before it accepted connections; its log is .*worker_"):
        async with running(broken, control):
            pass
    assert "Traceback" not in capfd.readouterr().err
    assert any("/no/such/cert.pem" in log.read_text() for log in place.logs.glob("worker_*"))


async def test_a_worker_that_cannot_be_started_for_a_while_is_started_later(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without descriptors or memory: what arrives meanwhile waits."""
    await plane.add(echo)
    async with running(place, control) as workers:
        start, refused = supervisor._start, list[Any]()

        def starting(*args: Any) -> Any:
            if len(refused) < 2:
                refused.append(args)
                raise OSError(12, "Cannot allocate memory")
            return start(*args)

        monkeypatch.setattr(supervisor, "_start", starting)
        assert workers._spare is not None
        workers._spare[0].kill()
        await until(lambda: workers._spare is None or workers._spare[0].poll() is not None)
        os.kill(pids(workers)[0], signal.SIGKILL)
        assert await asyncio.wait_for(send(workers), PATIENCE_S) == "you said hello"
        assert len(refused) == 2


async def test_a_spare_takes_the_place_of_a_killed_worker_and_another_one_is_kept(
    plane: DataPlane, control: Control, place: GatewayPlace, echo: Agent
) -> None:
    await plane.add(echo)
    async with running(place, control, 2) as workers:
        for _ in range(3):
            assert workers._spare is not None
            spare = workers._spare[0].pid
            os.kill(pids(workers)[1], signal.SIGKILL)
            await until(lambda pid=spare: pid in pids(workers), PATIENCE_S)  # type: ignore[misc]
            assert {await asyncio.wait_for(send(workers), PATIENCE_S) for _ in range(6)} == {"you said hello"}
            await until(lambda: workers._spare is not None, PATIENCE_S)
        assert workers._spare is not None
        last = workers._spare[0].pid
    assert not psutil.pid_exists(last)


def test_a_worker_does_not_import_ray() -> None:
    script = "import sys, deployments.workers.worker; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[3]).returncode == 0
