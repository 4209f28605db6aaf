"""A WebSocket through the gateway: codes, reasons, headers, denials, sizes, and what counts as life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import JSONResponse, StreamingResponse
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from deployments.upstream.connection import NotConnected
from deployments.upstream.websocket_connection import InstanceWebSocket
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import until

OURS = ("x-request-id", "x-swiftclaw-instance", "x-swiftclaw-version", "x-swiftclaw-region")


class Talk:
    """The app's side: what it received, and how it ended."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.endings: list[MutableMapping[str, Any]] = []
        for path in ("echo", "close", "deny", "stream", "raise", "raise-later", "slow", "ignore", "busy", "big"):
            self.app.websocket("/" + path)(getattr(self, path.replace("-", "_")))

    async def echo(self, socket: WebSocket) -> None:
        headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-app", b"yes")]
        await socket.accept(subprotocol="chosen-by-the-app" if "p" in socket.query_params else None, headers=headers)
        while (message := await socket.receive())["type"] == "websocket.receive":
            await socket.send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        self.endings.append(message)

    async def ignore(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive()
        await asyncio.Event().wait()

    async def busy(self, socket: WebSocket) -> None:
        await socket.accept()
        await asyncio.sleep(2.5)
        size = 0
        while (message := await socket.receive())["type"] == "websocket.receive" and message.get("text") != "end":
            size += len(message["bytes"])
        await socket.send_text(str(size))

    async def big(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_bytes(b"x" * 50_000_000)
        await socket.receive()

    async def close(self, socket: WebSocket, code: int, reason: str = "") -> None:
        await socket.accept()
        await socket.close(code, reason)

    async def deny(self, socket: WebSocket) -> None:
        headers = {"www-authenticate": "Bearer", "set-cookie": "a=1", "x-swiftclaw-instance": "forged"}
        await socket.send_denial_response(JSONResponse({"why": "no token"}, 401, headers))

    async def stream(self, socket: WebSocket) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one "
            yield b"two"

        await socket.send_denial_response(StreamingResponse(pieces(), 429, {"retry-after": "7"}))

    async def slow(self, socket: WebSocket) -> None:
        self.endings.append(await socket.receive())
        self.endings.append(await socket.receive())

    async def raise_(self, socket: WebSocket) -> None:
        raise ValueError("a secret detail")

    async def raise_later(self, socket: WebSocket) -> None:
        await socket.accept()
        raise ValueError("a secret detail")


setattr(Talk, "raise", Talk.raise_)


@pytest.fixture
async def talk(plane: DataPlane) -> Talk:
    agent, made = Agent("talk"), Talk()
    agent.mount(made.app)
    await plane.add(agent)
    return made


@asynccontextmanager
async def opened(plane: DataPlane, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
    url = plane.url.replace("http", "ws")
    async with connect(f"{url}/agents/talk{path}", max_size=None, proxy=None, **options) as socket:
        yield socket


async def ending(socket: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(socket.recv(), 10)
    return socket.close_code, socket.close_reason


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1013, 3000, 4403])
@pytest.mark.parametrize("reason", ["", "not allowed", "ü" * 61])
async def test_codes_and_reasons_pass_both_ways(plane: DataPlane, talk: Talk, code: int, reason: str) -> None:
    async with opened(plane, f"/close?code={code}&reason={quote(reason)}") as socket:
        assert await ending(socket) == (code, reason)
    async with opened(plane, "/echo") as socket:
        await socket.close(code, reason)
    await until(lambda: talk.endings)
    assert talk.endings == [{"type": "websocket.disconnect", "code": code, "reason": reason}]
    await until(lambda: plane.active() == 0)


async def test_a_close_without_a_code_arrives_as_one(plane: DataPlane, talk: Talk) -> None:
    async with opened(plane, "/echo") as socket:
        socket.transport.write(Frame(Opcode.CLOSE, b"").serialize(mask=True))
        await until(lambda: talk.endings)
    assert (talk.endings[0]["code"], talk.endings[0]["reason"]) == (1005, "")


async def test_a_client_whose_connection_breaks_is_a_disconnect(plane: DataPlane, talk: Talk) -> None:
    async with opened(plane, "/echo") as socket:
        socket.transport.abort()
        await until(lambda: talk.endings)
    await until(lambda: plane.active() == 0)


async def test_an_instance_that_breaks_off_closes_with_an_internal_error(plane: DataPlane, talk: Talk) -> None:
    async with opened(plane, "/echo") as socket:
        await socket.send("hi")
        assert await socket.recv() == "hi"
        for connection in list(plane.listeners["talk-instance-1"]._server.server_state.connections):
            connection.transport.abort()
        assert await ending(socket) == (1011, "the instance broke the connection")


@pytest.mark.parametrize("offered", [["a", "b"], None])
async def test_the_handshake_passes_headers_and_the_subprotocol(
    plane: DataPlane, talk: Talk, offered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("websockets.client.ClientProtocol.process_subprotocol", lambda self, headers: None)  # takes any
    async with opened(plane, "/echo?p=1", subprotocols=offered) as socket:
        assert socket.response is not None
        headers = socket.response.headers
    assert headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert (headers["x-app"], headers["sec-websocket-protocol"]) == ("yes", "chosen-by-the-app")
    assert all(headers[name] for name in OURS)
    assert not {"x-swiftclaw-load", "x-swiftclaw-key"} & {name.lower() for name in headers}


@pytest.mark.parametrize(
    ("path", "status", "name", "value", "body"),
    [
        ("/deny", 401, "www-authenticate", "Bearer", b'{"why":"no token"}'),
        ("/stream", 429, "retry-after", "7", b"one two"),
        ("/nowhere", 403, "content-length", "0", b""),
    ],
)
async def test_a_denial_is_the_apps_own(
    plane: DataPlane, talk: Talk, path: str, status: int, name: str, value: str, body: bytes
) -> None:
    with pytest.raises(InvalidStatus) as denied:
        async with opened(plane, path):
            pass
    response = denied.value.response
    assert (response.status_code, response.headers[name], response.body or b"") == (status, value, body)
    assert [len(response.headers.get_all(each)) for each in OURS] == [1] * len(OURS)
    assert response.headers["x-swiftclaw-instance"] == "instance-1"
    await until(lambda: plane.active() == 0)


async def test_an_exception_before_the_handshake_is_an_agent_error(plane: DataPlane, talk: Talk) -> None:
    with pytest.raises(InvalidStatus) as denied:
        async with opened(plane, "/raise"):
            pass
    response = denied.value.response
    assert response.status_code == 500 and response.body is not None
    assert b"agent_error" in response.body and b"secret" not in response.body


async def test_an_exception_after_the_handshake_closes_with_an_internal_error(plane: DataPlane, talk: Talk) -> None:
    async with opened(plane, "/raise-later") as socket:
        assert await ending(socket) == (1011, "agent_error")


async def test_a_refusal_of_the_gateway_has_the_request_id(plane: DataPlane, talk: Talk) -> None:
    url = plane.url.replace("http", "ws")
    with pytest.raises(InvalidStatus) as denied:
        async with connect(f"{url}/agents/nobody/ws", proxy=None):
            pass
    assert denied.value.response.status_code == 404
    assert denied.value.response.headers["x-request-id"]


@pytest.mark.parametrize("message", ["", "ü" * 1000, b"", b"\xff\x00" * 1000, "x" * 20_000_000, b"x" * 20_000_000], ids=len)
async def test_messages_of_any_kind_and_size_pass(plane: DataPlane, talk: Talk, message: Any) -> None:
    async with opened(plane, "/echo") as socket:
        await socket.send(message)
        assert await asyncio.wait_for(socket.recv(), 60) == message


@pytest.mark.parametrize("parts", [["a", "b", "ü"], [b"a", b"", b"\xff"]], ids=["text", "binary"])
async def test_fragments_arrive_as_one_message_with_pings_between_them(plane: DataPlane, talk: Talk, parts: list[Any]) -> None:
    async with opened(plane, "/echo") as socket:

        async def pieces() -> AsyncIterator[Any]:
            for part in parts:
                await (await socket.ping())
                yield part

        await socket.send(pieces())
        assert await asyncio.wait_for(socket.recv(), 10) == type(parts[0])().join(parts)


async def pings(socket: ClientConnection) -> None:
    await socket.ping()


async def pongs(socket: ClientConnection) -> None:
    socket.transport.write(Frame(Opcode.PONG, b"unsolicited").serialize(mask=True))


async def parts(socket: ClientConnection) -> None:
    """Bytes of one frame."""
    start = getattr(socket, "sent", 0)
    frame = Frame(Opcode.TEXT, b"x" * 100).serialize(mask=True)
    socket.sent = start + 10  # type: ignore[attr-defined]
    socket.transport.write(frame[start : start + 10])


@pytest.mark.parametrize("shows_life", [pings, pongs, parts])
async def test_a_client_that_shows_life_is_not_idle(
    plane: DataPlane, talk: Talk, shows_life: Callable[[ClientConnection], Any]
) -> None:
    plane.blocks["talk"] = {"timeouts": {"idle": "400ms"}}
    plane.announce()
    async with opened(plane, "/echo", ping_interval=None) as socket:
        for _ in range(9):
            await asyncio.sleep(0.1)
            await shows_life(socket)
        assert socket.close_code is None
        if shows_life is not parts:
            await socket.send("still there")
            assert await socket.recv() == "still there"
            assert await ending(socket) == (1001, "idle")
            await until(lambda: talk.endings)
            assert (talk.endings[0]["code"], talk.endings[0]["reason"]) == (1001, "idle")


async def test_answers_to_the_gateways_own_pings_are_no_sign_of_life(plane: DataPlane, talk: Talk) -> None:
    plane.blocks["talk"] = {"timeouts": {"idle": "500ms"}}
    plane.announce()
    for listener in (plane.gateway, *plane.listeners.values()):
        listener._server.config.ws_ping_interval = 0.05
    async with opened(plane, "/echo", ping_interval=None) as socket:
        assert await ending(socket) == (1001, "idle")


async def test_a_client_that_leaves_before_the_handshake_is_answered_frees_its_place(plane: DataPlane, talk: Talk) -> None:
    waiting = asyncio.create_task(opened(plane, "/slow").__aenter__())
    await until(lambda: plane.active() == 2)
    waiting.cancel()
    await until(lambda: plane.active() == 0)
    assert [message["type"] for message in talk.endings] == ["websocket.connect", "websocket.disconnect"]


async def test_messages_wait_for_an_app_that_does_not_read_them(plane: DataPlane, talk: Talk) -> None:
    async with opened(plane, "/ignore") as socket:

        async def sends_200_mb() -> None:
            for _ in range(200):
                await socket.send(b"x" * 1_000_000)

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sends_200_mb(), 2)
        socket.transport.abort()


@pytest.fixture
def quick_keepalive(plane: DataPlane, talk: Talk) -> None:
    for listener in (plane.gateway, *plane.listeners.values()):
        config = listener._server.config
        config.ws_ping_interval = 0.05
        config.ws_ping_timeout = 1 if listener is plane.gateway else config.ws_ping_timeout


@pytest.mark.usefixtures("quick_keepalive")
class TestKeepalive:
    """A pong is not overdue while it, or the ping, waits behind messages."""

    async def test_a_client_that_reads_slowly_is_served_to_the_end(self, plane: DataPlane) -> None:
        async with opened(plane, "/big", ping_interval=None) as socket:
            for _ in range(3):
                socket.transport.pause_reading()
                await asyncio.sleep(1.5)
                socket.transport.resume_reading()
                await asyncio.sleep(0.01)
            assert len(await asyncio.wait_for(socket.recv(), 60)) == 50_000_000

    async def test_a_client_that_sends_much_to_a_busy_app_stays(self, plane: DataPlane) -> None:
        async with opened(plane, "/busy", ping_interval=None) as socket:
            for _ in range(50):
                await socket.send(b"x" * 1_000_000)
            await socket.send("end")
            assert await asyncio.wait_for(socket.recv(), 60) == "50000000"

    async def test_a_client_that_does_not_answer_pings_is_closed(self, plane: DataPlane) -> None:
        async with opened(plane, "/echo", ping_interval=None) as socket:
            socket.protocol.recv_frame = lambda frame: socket.protocol.events.append(frame)  # type: ignore[method-assign]
            await until(lambda: plane.active() == 0)


class ClosedTransport(asyncio.Transport):
    """A connection that ended between connecting and the handshake: uvloop's raises RuntimeError on a write."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        raise RuntimeError("the handler is closed")


async def test_a_connection_that_is_closed_before_the_handshake_has_sent_nothing() -> None:
    """So that another instance is tried."""
    socket = InstanceWebSocket()
    socket.connection_made(ClosedTransport())
    socket.connection_lost(ConnectionResetError())
    with pytest.raises(NotConnected, match="before the handshake"):
        await socket.open("/", [], [])
