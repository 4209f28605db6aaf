"""The load writes down what became of every request, whatever the server does."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.campaign.load.arrivals import CONVERSATION, TURNS, WELL_BEHAVED, Arrivals, Traffic
from tests.campaign.load.fake_gateway import COOKIE, PID, Asked, FakeGateway, pieces, response, stream
from tests.campaign.load.misbehaving import KINDS, MisbehavingClients
from tests.campaign.load.websocket import talk
from tests.campaign.record import Lines, Request, read


async def load_on(gateway: FakeGateway, file: Path, kind: str = "", seconds: float = 0.3) -> tuple[Arrivals, list[Request]]:
    """Requests of one kind, or of all that a fake gateway answers."""
    shares = {kind: 1.0} if kind else {name: share for name, share in WELL_BEHAVED.items() if name != "ws"}
    lines = Lines(file)
    arrivals = Arrivals(gateway.port, lines, Traffic(60.0, seconds, seed=3, prefix="r", shares=shares, pause_s=(0, 0.02)))
    await arrivals.run()
    lines.close()
    return arrivals, list(read(file, Request))


@pytest.mark.parametrize("kind", ["plain", "keyed", "app-get", "app-put", "app-post", "chat", "stream", "conversation"])
async def test_every_kind_is_answered_and_recognised(kind: str, tmp_path: Path) -> None:
    async with FakeGateway().running() as gateway:
        arrivals, requests = await load_on(gateway, tmp_path / "r", kind)
    assert arrivals.sent == len(requests) == len({one.id for one in requests}) > 0
    assert {(one.outcome, one.pid, one.status) for one in requests} == {("ok", PID, 200)}
    repeatable = kind in ("keyed", "app-get", "app-put")
    assert {one.repeatable for one in requests} == {repeatable}
    assert all(0 < one.began <= one.first_byte <= one.ended for one in requests)


async def test_the_rate_counts_conversations_by_their_turns(tmp_path: Path) -> None:
    async with FakeGateway().running() as gateway:
        arrivals, _ = await load_on(gateway, tmp_path / "r", seconds=3)
    assert 120 <= arrivals.sent <= 240


async def test_a_conversation_counts_its_turns_and_sends_its_cookie(tmp_path: Path) -> None:
    async with FakeGateway().running() as gateway:
        _, requests = await load_on(gateway, tmp_path / "r", CONVERSATION, seconds=2)
    assert set(Counter(one.conversation for one in requests).values()) == {TURNS}
    assert all(one.turn == one.count for one in requests)
    by_id = {one.id: one for one in requests}
    for asked in gateway.asked:
        request = by_id[asked.headers["x-request-id"]]
        with_cookie = request.turn > 1 and request.affinity != "named"
        named = "session_id" in json.loads(asked.body) or "x-session-id" in asked.headers
        assert asked.headers.get("cookie") == (COOKIE if with_cookie else None)
        assert named == (request.affinity != "cookie")


async def test_connections_are_kept_and_used_again(tmp_path: Path) -> None:
    async with FakeGateway().running() as gateway:
        _, requests = await load_on(gateway, tmp_path / "r", "plain", seconds=1)
    assert gateway.connections == sum(one.fresh for one in requests) < len(requests)


def named(asked: Asked) -> bytes:
    return response({"error": {"type": "overloaded", "message": "full"}}, 503, {"x-swiftclaw-instance": "instance-2"})


def another(asked: Asked) -> bytes:
    return response({"reply": f"other|{PID}|code1|1"})


@pytest.mark.parametrize(
    "answer, outcome",
    [
        (named, "error"),
        (lambda asked: response("oops", 500), "unnamed"),
        (another, "wrong"),
        (lambda asked: response({"no": "reply"}), "wrong"),
        (lambda asked: b"", "broken"),
        (lambda asked: response({"reply": "x"})[:-5], "broken"),
        (lambda asked: b"not http\r\n\r\n", "broken"),
    ],
)
async def test_an_outcome_says_what_the_server_did(answer: Callable[[Asked], bytes], outcome: str, tmp_path: Path) -> None:
    async with FakeGateway(answer, keeps=False).running() as gateway:
        arrivals, requests = await load_on(gateway, tmp_path / "r", "plain")
    assert arrivals.sent == len(requests) > 0
    assert {one.outcome for one in requests} == {outcome}
    if outcome == "error":
        assert {(one.error, one.instance, one.message) for one in requests} == {("overloaded", "instance-2", "full")}


FAILED = 'event: error\ndata: {"error": {"type": "instance_failed", "message": "it died"}}\n\n'


@pytest.mark.parametrize(
    "answer, outcome, midway",
    [
        (lambda name: stream(pieces(name)), "ok", False),
        (lambda name: stream(pieces(name, 4), FAILED), "error", True),
        (lambda name: stream(pieces(name, 4), ": nothing more\n\n"), "broken", False),
        (lambda name: stream(pieces(name))[:-60], "broken", False),
        (lambda name: stream(pieces("other")), "wrong", False),
        (lambda name: stream([*pieces(name)[5:], *pieces(name)[:5]]), "wrong", False),
    ],
)
async def test_a_stream_is_whole_in_order_and_has_an_end(
    answer: Callable[[str], bytes], outcome: str, midway: bool, tmp_path: Path
) -> None:
    async with FakeGateway(lambda asked: answer(asked.headers["x-request-id"]), keeps=False).running() as gateway:
        _, requests = await load_on(gateway, tmp_path / "r", "stream")
    assert {(one.outcome, one.midway) for one in requests} == {(outcome, midway)}


async def test_a_server_that_refuses_connections_breaks_requests_but_not_the_load(tmp_path: Path) -> None:
    gateway = FakeGateway()
    async with gateway.running():
        pass
    arrivals, requests = await load_on(gateway, tmp_path / "r", "plain")
    assert arrivals.sent == len(requests) > 0
    assert {(one.outcome, one.client_port) for one in requests} == {("broken", 0)}


# --- WebSockets -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def talking(handler: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/agents/chaos/talk/w1"


async def echo(socket: ServerConnection) -> None:
    async for text in socket:
        await socket.send(f"w1|{PID}|code1|{text!s}")


async def close_with_a_reason(socket: ServerConnection) -> None:
    await socket.recv()
    await socket.close(1011, "instance_failed")


async def drop(socket: ServerConnection) -> None:
    await socket.recv()
    socket.transport.abort()


@pytest.mark.parametrize(
    "handler, outcome, error",
    [(echo, "ok", ""), (close_with_a_reason, "error", "ws-1011"), (drop, "broken", "")],
)
async def test_a_websocket_conversation_ends_in_words(
    handler: Callable[[ServerConnection], Awaitable[None]], outcome: str, error: str
) -> None:
    request = Request("w1", "ws")
    async with talking(handler) as uri:
        await talk(request, uri, pause_s=0)
    assert (request.outcome, request.error) == (outcome, error)
    assert request.client_port > 0


# --- clients that misbehave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_misbehaving_client_ends_and_no_request_of_it_is_sent_twice(kind: str) -> None:
    requests = [Request(f"m{number}", kind) for number in range(12)]
    async with FakeGateway().running() as gateway:
        for seed, request in enumerate(requests):
            await MisbehavingClients(gateway.port, random.Random(seed), hurry=20).send(request)
    assert {one.outcome for one in requests} <= {"left", "ok", "error"}
    assert {one.pid for one in requests if one.outcome == "ok"} <= {PID}
    sent = Counter(asked.headers.get("x-request-id", "garbage") for asked in gateway.asked)
    assert all(count == 1 for name, count in sent.items() if name != "garbage")


async def test_garbage_carries_no_identity() -> None:
    async with FakeGateway().running() as gateway:
        for seed in range(10):
            await MisbehavingClients(gateway.port, random.Random(seed), hurry=20).send(Request("g1", "garbage"))
    assert not [asked for asked in gateway.asked if "x-request-id" in asked.headers or b"g1" in asked.body]
