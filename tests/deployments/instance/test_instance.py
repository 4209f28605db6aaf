"""An instance process from start to stop, beside a Controller that only answers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.controller_api import ControlApi
from cluster.messages import (
    CHECK_PATH,
    KEY_HEADER,
    WATCH_PATH,
    InstanceSpec,
    Registration,
    RegistrationReply,
    StartPermit,
    StartRequest,
)
from cluster.transport.rpc import ControllerUnavailable, RpcAddress, RpcClient, RpcServer
from deployments.instance import instance
from deployments.instance.instance import InstanceReplica
from policies.lifecycle.draining import DrainTerms
from policies.rate_limit import RateRule

KEY = "the-secret"
AGENT = """
from pathlib import Path
from typing import Any
from swiftclaw import Agent

agent = Agent("shop", session_affinity=True)

@agent.rate_limit(requests=3, window="1m", key="user_id")
async def handle(message: str) -> str:
    return message.upper()

@agent.on_stop
def note() -> None:
    Path(__file__).with_name("stopped").touch()
"""


class AnsweringController:
    """The methods that instances call, and what they were called with."""

    def __init__(self) -> None:
        self.registrations: list[Registration] = []
        self.registered_twice = asyncio.Event()
        self.calls: list[tuple[object, ...]] = []
        self.start_requests: list[StartRequest] = []
        self.permits: list[StartPermit] = []

    async def register(self, new: Registration) -> RegistrationReply:
        self.registrations.append(new)
        if len(self.registrations) == 2:
            self.registered_twice.set()
        return RegistrationReply(new.id or "instance-1", KEY, DrainTerms(keep_sessions=False))

    async def cannot_start(self, app: str, replica: str, reason: str) -> None:
        self.calls.append(("cannot_start", app, reason))

    async def request_start(self, request: StartRequest) -> StartPermit:
        self.start_requests.append(request)
        return self.permits.pop(0) if self.permits else StartPermit(0.0, request.crashes)

    async def deregister_instance(self, replica: str, agent: str) -> DrainTerms | None:
        self.calls.append(("deregister_instance", replica, agent))
        return None


@pytest.fixture
async def controller() -> AsyncIterator[tuple[AnsweringController, RpcClient]]:
    made = AnsweringController()
    names = ("request_start", "register", "cannot_start", "deregister_instance")
    server = RpcServer({name: getattr(made, name) for name in names}, KEY)
    await server.open("127.0.0.1")

    async def find() -> RpcAddress:
        return server.address

    client = RpcClient(find)
    yield made, client
    await client.close()
    await server.close()


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds to the import path is gone after it."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


def replica(folder: Path, client: RpcClient, target: str) -> InstanceReplica:
    spec = InstanceSpec("shop", target, str(folder), "v1", "local", "shop.v1.local")
    return InstanceReplica(spec, spec.app, client, replica="r1", node="n1", host="127.0.0.1")


async def test_it_registers_answers_and_on_stop_deregisters_refuses_and_runs_the_stop_hooks(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient]
) -> None:
    (tmp_path / "whole_life.py").write_text(AGENT)
    made, client = controller
    process = replica(tmp_path, client, "whole_life:agent")
    await process.start()
    (registration,) = made.registrations
    assert (registration.replica, registration.node, registration.host) == ("r1", "n1", "127.0.0.1")
    assert registration.session_affinity and registration.rate_rules == (RateRule(3, 60.0, "user_id"),)
    url = f"http://127.0.0.1:{registration.port}"
    async with aiohttp.ClientSession(headers={KEY_HEADER.decode(): KEY}) as session:
        async with session.post(f"{url}/messages", json={"message": "hi"}) as response:
            assert (await response.json())["reply"] == "HI"
        async with session.get(url + WATCH_PATH) as watch:
            assert json.loads(await watch.content.readline())["replica"] == "r1"
            await asyncio.gather(process.stop(), process.stop())
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(f"{url}/messages", json={"message": "hi"})
    assert made.calls == [("deregister_instance", "r1", "shop")]
    assert (tmp_path / "stopped").exists()


async def test_without_a_watch_of_the_controller_it_registers_again_under_its_name(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "UNWATCHED_S", 0.0)
    (tmp_path / "unwatched.py").write_text(AGENT)
    made, client = controller
    process = replica(tmp_path, client, "unwatched:agent")
    await process.start()
    await asyncio.wait_for(made.registered_twice.wait(), 20)
    first, again = made.registrations[:2]
    assert again == replace(first, id="instance-1")
    await process.stop()


BLOCKING = """
import asyncio, threading
from swiftclaw import Agent

agent = Agent("shop")
together = threading.Barrier(60)

@agent.on_message
async def handle(message: str) -> str:
    await asyncio.to_thread(together.wait, 20)
    return "together"

@agent.health_check
def check() -> bool:
    return True
"""


async def test_calls_of_to_thread_do_not_wait_for_each_other(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient]
) -> None:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    made, client = controller
    process = replica(tmp_path, client, "blocking:agent")
    await process.start()
    url = f"http://127.0.0.1:{made.registrations[0].port}"

    async def reply() -> object:
        async with session.post(f"{url}/messages", json={"message": "hi"}) as response:
            return (await response.json())["reply"]

    async with aiohttp.ClientSession(headers={KEY_HEADER.decode(): KEY}) as session:
        asked = [asyncio.create_task(reply()) for _ in range(59)]
        await asyncio.sleep(0.2)
        async with session.post(url + CHECK_PATH) as response:  # beside 59 blocked threads
            assert await response.json() == {"healthy": True, "reason": ""}
        assert not any(task.done() for task in asked)
        assert await asyncio.gather(*asked, reply()) == ["together"] * 60
    await process.stop()


async def test_an_agent_that_cannot_be_imported_is_reported_with_the_reason(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient]
) -> None:
    made, client = controller
    with pytest.raises(RuntimeError, match="cannot be imported"):
        await replica(tmp_path, client, "no_such_module:agent").start()
    ((name, app, reason),) = made.calls
    assert (name, app) == ("cannot_start", "shop.v1.local")
    assert str(reason).startswith("no_such_module:agent cannot be imported: ModuleNotFoundError")
    assert made.registrations == []


def test_the_controller_here_has_only_methods_of_the_real_one() -> None:
    methods = {name for name in vars(AnsweringController) if not name.startswith("_")}
    assert methods <= set(vars(ControlApi))


MOUNTED = """
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from fastapi import FastAPI
from swiftclaw import Agent

agent = Agent("shop")
notes = Path(__file__).with_suffix(".notes")

def note(event: str) -> None:
    with notes.open("a") as file:
        file.write(event + " ")

@agent.on_start
def before() -> None:
    note("on_start")

@agent.on_stop
def after() -> None:
    note("on_stop")

@asynccontextmanager
async def lifespan(app):
    note("startup")
    yield
    note("shutdown")

agent.mount(FastAPI(lifespan=lifespan))
"""


async def test_the_mounted_app_starts_after_the_start_hooks_and_ends_before_the_stop_hooks(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient]
) -> None:
    (tmp_path / "in_order.py").write_text(MOUNTED)
    _, client = controller
    process = replica(tmp_path, client, "in_order:agent")
    await process.start()
    assert (tmp_path / "in_order.notes").read_text() == "on_start startup ", "before the first request"
    await process.stop()
    assert (tmp_path / "in_order.notes").read_text() == "on_start startup shutdown on_stop "


async def test_a_mounted_app_that_fails_to_start_is_reported_and_the_instance_never_registers(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient]
) -> None:
    (tmp_path / "no_database.py").write_text(MOUNTED.replace('note("startup")', 'raise OSError("no database")'))
    made, client = controller
    reason = "the mounted app failed to start: OSError: no database"
    with pytest.raises(RuntimeError, match=reason):
        await replica(tmp_path, client, "no_database:agent").start()
    assert made.calls == [("cannot_start", "shop.v1.local", reason)]
    assert made.registrations == []


async def test_it_loads_the_agents_code_only_when_the_controller_lets_it_start(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "ASK_AGAIN_S", 0.01)
    made, client = controller
    made.permits = [StartPermit(30.0, 4), StartPermit(29.0, 4), StartPermit(0.0, 4)]
    (tmp_path / "broken_once.py").write_text("raise RuntimeError('the code before it was fixed')")

    def repair() -> StartPermit:
        (tmp_path / "broken_once.py").write_text(AGENT)
        return StartPermit(0.0, 4)

    class Permits(list[StartPermit]):
        def pop(self, index: Any = 0) -> StartPermit:
            return super().pop(index) if len(self) > 1 else repair()

    made.permits = Permits(made.permits)
    process = replica(tmp_path, client, "broken_once:agent")
    await process.start()
    first, second, third = made.start_requests[:3]
    assert (first.crashes, first.wait_s) == (0, 0.0)
    assert second.crashes == third.crashes == 4 and 0 < third.wait_s <= second.wait_s <= 30
    assert made.registrations[0].crashes == 4
    await process.stop()


async def test_one_that_waits_for_its_permit_is_stopped_without_delay_and_keeps_waiting_without_a_controller(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "ASK_AGAIN_S", 0.01)
    made, client = controller
    answers = iter([StartPermit(30.0, 3)])
    again = asyncio.Event()

    async def then_unavailable(method: Any, request: Any, timeout_s: float = 1.0) -> StartPermit:
        for permit in answers:
            return permit
        again.set()
        raise ControllerUnavailable("restarting")

    process = replica(tmp_path, client, "never_imported:agent")
    with monkeypatch.context() as patch:
        patch.setattr(client, "call", then_unavailable)
        starting = asyncio.create_task(process.start())
        await asyncio.wait_for(again.wait(), 10)
        await asyncio.sleep(0.05)
        assert not starting.done()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    await process.stop()
    assert made.calls == [("deregister_instance", "r1", "shop")]


async def test_one_that_starts_waits_for_a_controller_that_is_away(
    tmp_path: Path, controller: tuple[AnsweringController, RpcClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "patient.py").write_text(AGENT)
    monkeypatch.setattr(instance, "ASK_AGAIN_S", 0.01)
    made, client = controller
    call, away = client.call, iter(range(3))

    async def away_at_first(method: Any, *args: Any, timeout_s: float = 20.0) -> Any:
        if method.__name__ == "register" and next(away, None) is not None:
            raise ControllerUnavailable("restarting")
        return await call(method, *args, timeout_s=timeout_s)

    monkeypatch.setattr(client, "call", away_at_first)
    process = replica(tmp_path, client, "patient:agent")
    await process.start()
    assert len(made.registrations) == 1
    await process.stop()


async def test_its_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "PATIENCE_S", 0.0)
    monkeypatch.setattr(instance, "ASK_AGAIN_S", 0.01)

    async def away() -> None:
        raise ControllerUnavailable("restarting")

    with pytest.raises(ControllerUnavailable, match="restarting"):
        await instance.patiently(away)
