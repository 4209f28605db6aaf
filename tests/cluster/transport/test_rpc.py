"""How gateways and instances call the Controller: over real sockets, signed both ways, and no caller holds up another."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp
import pytest

from cluster.controller_api import method_names
from cluster.transport.rpc import ControllerUnavailable, Methods, RpcAddress, RpcClient, RpcServer, UnknownMethod, sign


class Api(Protocol):
    """What the two ends share."""

    async def news(self, hello: str, seen: str | None) -> tuple[str, str | None]: ...
    async def observe(self, seen: object) -> None: ...
    async def register(self, new: object) -> None: ...


class AnotherRelease(Protocol):
    """Methods that the Controller has, or not, but none that it serves here."""

    async def stop_apps(self) -> None: ...
    async def stop(self) -> None: ...


class Controller:
    def __init__(self, name: str = "first") -> None:
        self.name = name
        self.asked = asyncio.Event()
        self.seen: list[object] = []

    async def news(self, hello: str, seen: str | None) -> tuple[str, str | None]:
        self.asked.set()
        if hello == "patient":
            await asyncio.sleep(3600)
        return self.name, seen

    async def observe(self, seen: object) -> None:
        self.seen.append(seen)

    async def register(self, new: object) -> None:
        raise RuntimeError("no")

    async def stop_apps(self) -> None:
        self.seen.append("must not be called from here")


def served_by(controller: Controller) -> Methods:
    return {name: getattr(controller, name) for name in method_names(Api)}


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
async def port(controller: Controller) -> AsyncIterator[RpcServer]:
    made = RpcServer(served_by(controller), "secret")
    await made.open("127.0.0.1")
    yield made
    await made.close()


async def found(port: RpcServer) -> RpcAddress:
    return port.address


@pytest.fixture
async def link(port: RpcServer) -> AsyncIterator[RpcClient]:
    made = RpcClient(lambda: found(port))
    yield made
    await made.close()


async def test_a_call_returns_what_the_method_returns(link: RpcClient, controller: Controller) -> None:
    assert await link.call(Api.news, "g1", None) == ("first", None)
    await link.call(Api.observe, {("a", "r1"): 3})
    assert controller.seen == [{("a", "r1"): 3}]


async def test_one_that_waits_for_news_keeps_nobody_from_being_answered(link: RpcClient, controller: Controller) -> None:
    waiting = asyncio.create_task(link.call(Api.news, "patient", "v1"))
    await controller.asked.wait()
    assert await link.call(Api.news, "g2", "v1") == ("first", "v1")
    waiting.cancel()


async def test_a_call_that_may_be_interrupted_ends_when_its_caller_disconnects(caplog: pytest.LogCaptureFixture) -> None:
    controller = Controller()
    ended = asyncio.Event()

    async def news(who: str, version: str | None) -> None:
        controller.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = RpcServer({"news": news}, "secret", interrupted=["news"])
    await server.open("127.0.0.1")
    link = RpcClient(lambda: found(server))
    waiting = asyncio.create_task(link.call(Api.news, "g1", None))
    await controller.asked.wait()
    waiting.cancel()
    await asyncio.wait_for(ended.wait(), 20)
    await link.close()
    await server.close()
    assert not [record for record in caplog.records if record.exc_info]


async def test_what_the_controller_could_not_do_is_said_and_not_what_it_raised(link: RpcClient) -> None:
    with pytest.raises(ControllerUnavailable, match="answered register with status 500"):
        await link.call(Api.register, 1)


@pytest.mark.parametrize("method", [AnotherRelease.stop_apps, AnotherRelease.stop, Controller.__init__])
async def test_a_method_outside_the_protocol_is_an_error_by_name(link: RpcClient, controller: Controller, method: Any) -> None:
    with pytest.raises(UnknownMethod, match=f"no method '{method.__name__}'"):
        await link.call(method)
    assert controller.seen == []


@pytest.mark.parametrize("signature", ["", sign("another key", b"observe", pickle.dumps((1,))).decode()])
async def test_what_is_not_signed_with_the_clusters_key_is_refused_before_it_is_read(
    port: RpcServer, controller: Controller, signature: str
) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"http://127.0.0.1:{port.address.port}/observe",
            data=pickle.dumps((1,)),
            headers={"x-swiftclaw-signature": signature} if signature else {},
        ) as response,
    ):
        assert response.status == 403
    assert controller.seen == []


async def test_a_signature_is_for_one_method_and_one_content(port: RpcServer) -> None:
    content = pickle.dumps((1,))
    for path, data in (("news", content), ("observe", pickle.dumps((2,)))):
        async with (
            aiohttp.ClientSession() as client,
            client.post(
                f"http://127.0.0.1:{port.address.port}/{path}",
                data=data,
                headers={"x-swiftclaw-signature": sign("secret", b"observe", content).decode()},
            ) as response,
        ):
            assert response.status == 403


async def test_an_answer_by_somebody_else_is_not_believed(port: RpcServer) -> None:
    other = RpcServer(served_by(Controller("somebody else")), "another key")
    await other.open("127.0.0.1")

    async def misled() -> RpcAddress:
        return RpcAddress("127.0.0.1", other.address.port, "secret")

    link = RpcClient(misled)
    with pytest.raises(ControllerUnavailable):
        await link.call(Api.news, "g1", None)
    await link.close()
    await other.close()


async def test_a_controller_that_came_back_elsewhere_is_found_again() -> None:
    first, second = (RpcServer(served_by(Controller(name)), "k") for name in ("first", "second"))
    await first.open("127.0.0.1")
    now = [first]
    link = RpcClient(lambda: found(now[0]))
    assert (await link.call(Api.news, "g", None))[0] == "first"
    await first.close()
    await second.open("127.0.0.1")
    now[0] = second
    assert (await link.call(Api.news, "g", None))[0] == "second"
    await link.close()
    await second.close()


async def test_a_call_that_takes_too_long_is_given_up(link: RpcClient) -> None:
    with pytest.raises(ControllerUnavailable, match="Timeout"):
        await link.call(Api.news, "patient", None, timeout_s=0.1)
