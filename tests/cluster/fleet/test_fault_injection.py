"""An instance is taken away on purpose, and comes back: against instances that are played on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from cluster.fleet.fault_injection import REASON, FaultInjector
from cluster.fleet.instance_client import InstanceClient
from cluster.fleet.registry import InstanceRecord, Registry
from cluster.messages import DRAIN_PATH, KEY_HEADER, KILL_PATH, Registration


class Played:
    """One instance: what it was asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.status = 202

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get(KEY_HEADER.decode(), "")))
        if request.path == KILL_PATH and request.transport is not None:
            request.transport.abort()
        return web.Response(status=self.status)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{any:.*}", self.answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    instance = Played()
    await instance.start()
    yield instance
    await instance.runner.cleanup()


@pytest.fixture
async def client() -> AsyncIterator[InstanceClient]:
    client = InstanceClient("secret")
    yield client
    await client.close()


def registered(port: int, registry: Registry | None = None) -> tuple[Registry, InstanceRecord]:
    registry = registry or Registry(lambda: None)
    record = registry.admit(Registration("a", "v1", "local", "a.v1", "r", "127.0.0.1", port, pid=1, node="n", started_at=0.0))
    registry.observe("r")
    registry.judge("r", True, "", 0.0)
    return registry, record


@pytest.mark.parametrize(("mode", "path"), [("kill", KILL_PATH), ("drain", DRAIN_PATH)])
async def test_the_instance_is_told_with_the_key_and_may_die_without_an_answer(
    mode: str, path: str, played: Played, client: InstanceClient
) -> None:
    registry, _ = registered(played.port)
    ending: list[str] = []
    await FaultInjector(registry, client, ending.append).inject("a", "instance-1", mode, 1)
    assert played.asked == [(path, "secret")]
    assert ending == ["r"], "its end is no crash: it is started again without delay"


async def test_unhealthy_holds_whatever_the_checks_say_and_then_they_decide_again(client: InstanceClient) -> None:
    registry, record = registered(1)
    injector = FaultInjector(registry, client)
    await injector.inject("a", "instance-1", "unhealthy", 0.2)
    assert (record.state, record.held) == ("unhealthy", REASON)
    registry.judge("r", True, "", 1.0)
    assert record.state == "unhealthy"
    while record.held:
        await asyncio.sleep(0.01)
    assert record.state == "healthy"


async def test_an_instance_that_fell_ill_meanwhile_stays_out_when_the_hold_ends(client: InstanceClient) -> None:
    registry, record = registered(1)
    injector = FaultInjector(registry, client)
    await injector.inject("a", "instance-1", "unhealthy", 60)
    registry.judge("r", False, "database", 1.0)
    await injector.inject("a", "instance-1", "unhealthy", 0)
    assert (record.state, record.held, record.reason) == ("unhealthy", "", "database")


async def test_no_time_at_all_ends_a_hold_and_its_timer(client: InstanceClient) -> None:
    registry, record = registered(1)
    injector = FaultInjector(registry, client)
    await injector.inject("a", "instance-1", "unhealthy", 0.1)
    await injector.inject("a", "instance-1", "unhealthy", 0)
    assert record.state == "healthy"
    await injector.inject("a", "instance-1", "unhealthy", 60)
    await asyncio.sleep(0.2)  # the first one's timer would end the second hold
    assert record.state == "unhealthy"


async def test_a_hold_is_not_remembered_across_a_restart(client: InstanceClient) -> None:
    registry, _ = registered(1)
    await FaultInjector(registry, client).inject("a", "instance-1", "unhealthy", 60)
    again = Registry(lambda: None)
    again.restore(registry.dump())
    assert [record.state for record in again] == ["healthy"]


@pytest.mark.parametrize(
    ("agent", "instance", "mode", "says"),
    [
        ("a", "instance-2", "kill", r"a has no instance 'instance-2' \(it has: instance-1\)"),
        ("b", "instance-1", "kill", r"b has no instance 'instance-1' \(it has: none\)"),
        ("a", "instance-1", "hang", r"'hang' is not a failover mode \(kill, drain, unhealthy\)"),
        ("a", "instance-1", "drain", "instance-1 of a does not respond: ClientConnectorError"),
    ],
)
async def test_what_is_not_possible_is_a_sentence(
    agent: str, instance: str, mode: str, says: str, client: InstanceClient
) -> None:
    registry, _ = registered(1)
    with pytest.raises(ValueError, match=says):
        await FaultInjector(registry, client).inject(agent, instance, mode, 1)


async def test_one_that_is_not_healthy_cannot_be_taken_away(client: InstanceClient) -> None:
    registry, _ = registered(1)
    registry.drain("r", "stopping")
    for mode in ("kill", "drain", "unhealthy"):
        with pytest.raises(
            ValueError, match="instance-1 of a is draining: only a healthy instance can be taken out of service"
        ):
            await FaultInjector(registry, client).inject("a", "instance-1", mode, 1)


async def test_one_that_declines_is_a_sentence(played: Played, client: InstanceClient) -> None:
    played.status = 403
    registry, _ = registered(played.port)
    with pytest.raises(ValueError, match="instance-1 of a answered the drain request with status 403 and stays in service"):
        await FaultInjector(registry, client).inject("a", "instance-1", "drain", 1)
