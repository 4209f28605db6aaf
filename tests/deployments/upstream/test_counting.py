"""What a gateway tells of its requests: each is counted once, with the time that its choice took."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from cluster.messages import Observation
from deployments.proxy.client_connection import ClientConnection
from deployments.types import Receive, Scope, Send
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import until

agent = Agent("my-agent", model="echo")


@agent.on_message
async def echo(message: str) -> str:
    return message


async def test_every_request_is_counted_once_with_its_choice(plane: DataPlane) -> None:
    await plane.add(agent, 3)
    for number in range(30):
        async with plane.client.post("/agents/my-agent/messages", json={"message": str(number)}) as answer:
            assert answer.status == 200
            await answer.read()
    seen = plane.reporter.observation()
    counts = seen.instances.values()
    assert sum(sum(one.codes.values()) for one in counts) == 30
    assert sum(sum(one.routings) for one in counts) == 30
    assert 0 < sum(one.routing_sum_s for one in counts) < sum(one.duration_sum_s for one in counts)


async def test_a_request_that_is_tried_again_is_chosen_for_once(plane: DataPlane) -> None:
    await plane.add(agent, 2)
    await plane.end("my-agent-instance-1")
    for number in range(4):
        async with plane.client.post("/agents/my-agent/messages", json={"message": str(number)}) as answer:
            assert answer.status == 200
            await answer.read()
    seen = plane.reporter.observation()
    assert sum(sum(one.codes.values()) for one in seen.instances.values()) == 4
    assert sum(sum(one.routings) for one in seen.instances.values()) == 4
    assert seen.unreachable == {("my-agent", "my-agent-instance-1")}


slow = Agent("slow", model="echo")


@slow.on_message
async def sleep(message: str) -> str:
    await asyncio.sleep(30)
    return message


def every(seen: Observation) -> Counter[int]:
    """By status, over all that `swiftclaw_requests_total` adds up."""
    codes = sum((Counter(one.codes) for one in seen.instances.values()), Counter[int]())
    for (_, status), count in seen.refusals.items():
        codes[status] += count
    return codes


async def test_what_failed_at_an_instance_is_counted_there_and_not_as_a_refusal_too(plane: DataPlane) -> None:
    plane.blocks["slow"] = {"timeouts": {"request": "200ms"}}
    await plane.add(slow, 1)
    answers = Counter[int]()
    for path, body in (("slow", {"message": "hi"}), ("nobody", {"message": "hi"})):
        async with plane.client.post(f"/agents/{path}/messages", json=body) as answer:
            answers[answer.status] += 1
    async with plane.client.get("/agents/nobody/x", headers={f"x-{n}": "y" * 6000 for n in range(11)}) as answer:
        answers[answer.status] += 1
    seen = plane.reporter.observation()
    assert every(seen) == answers == {504: 1, 404: 1, 431: 1}
    assert seen.refusals == {("", 404): 1, ("", 431): 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_it_is_counted_before_its_last_byte_goes_out(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """So that no gateway can be killed between a client's whole answer and its count."""
    await plane.add(agent, 1)
    counted: list[tuple[bytes, dict[int, int]]] = []
    flush = ClientConnection.flush

    def watched(connection: ClientConnection) -> None:
        (pool,) = plane.agents.pools.values()
        (backend,) = pool.backends()
        counted.append((b"".join(connection._out), backend.tally.codes))
        flush(connection)

    monkeypatch.setattr(ClientConnection, "flush", watched)
    async with plane.client.post("/agents/my-agent/messages", json={"message": "hi", "stream": stream}) as answer:
        await answer.read()
    sent = [(piece, codes) for piece, codes in counted if piece]
    assert sent[-1][1] == {200: 1}
    assert all(codes == {} for _, codes in sent[:-1])
    assert every(plane.reporter.observation()) == {200: 1}


async def lengthy(scope: Scope, receive: Receive, send: Send) -> None:
    """Two pieces of a body whose length is told before: its client knows the end without being told."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await asyncio.sleep(0.1)
    await send({"type": "http.response.body", "body": b"half", "more_body": False})


async def test_a_body_of_known_length_is_counted_before_its_last_piece(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = Agent("mounted")
    mounted.mount(lengthy)
    await plane.add(mounted)
    written: list[tuple[bytes, int]] = []
    flush = ClientConnection.flush

    def watched(connection: ClientConnection) -> None:
        if connection._out:
            written.append((b"".join(connection._out)[-4:], counts(plane)[200]))
        flush(connection)

    monkeypatch.setattr(ClientConnection, "flush", watched)
    async with plane.client.get("/agents/mounted/x") as answer:
        assert await answer.read() == b"halfhalf"
    assert written == [(b"half", 0), (b"half", 1)]
    assert every(plane.reporter.observation()) == {200: 1}


def counts(plane: DataPlane) -> Counter[int]:
    (pool,) = plane.agents.pools.values()
    return sum((Counter(backend.tally.codes) for backend in pool.backends()), Counter[int]())


async def busy(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that takes its time after the client has left. /close: it closes the WebSocket itself."""
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"].endswith("/close"):
        await send({"type": "websocket.close", "code": 1000})
    else:
        await receive()
    await asyncio.sleep(0.5)


@pytest.mark.parametrize("path", ["leave", "close"])
async def test_a_web_socket_is_counted_when_its_client_sees_it_closed(plane: DataPlane, path: str) -> None:
    """Not when its app has finished: a gateway that is killed in between would lose it."""
    mounted = Agent("mounted")
    mounted.mount(busy)
    await plane.add(mounted)
    async with plane.client.ws_connect(f"/agents/mounted/{path}") as socket:
        if path == "close":
            await socket.receive()
        else:
            assert counts(plane) == {}
    assert counts(plane) == {101: 1}
    (pool,) = plane.agents.pools.values()
    await until(lambda: not any(backend.tally.active for backend in pool.backends()))
    assert every(plane.reporter.observation()) == {101: 1}
