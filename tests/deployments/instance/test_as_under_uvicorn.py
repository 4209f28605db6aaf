"""A mounted app answers as it does under `uvicorn --root-path`: the same requests to both, and the answers compared."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from yarl import URL

from cluster.transport.listener import bind
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import until
from tests.deployments.instance.reference_app import METHODS, reference_app

ROOT = "/agents/ref"
HOST = "app.example:8443"
# What may differ. Of responses: what every forwarded response carries, what a server adds, and what belongs to one hop.
NOT_COMPARED = {"x-request-id", "x-swiftclaw-instance", "x-swiftclaw-version", "x-swiftclaw-region", "date", "server",
                "connection", "keep-alive", "transfer-encoding", "x-accel-buffering"}  # fmt: skip
# Of requests, as the app sees them: what the gateway adds, and what belongs to one hop.
NOT_SHOWN = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix", "x-request-id", "connection",
             "transfer-encoding", "via"}  # fmt: skip


class Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@dataclass
class Side:
    """`under`: below which path the app is asked for."""

    url: str
    under: str

    def target(self, path: str) -> str:
        return f"{self.url}{self.under}{path}"


@dataclass
class Sides:
    plain: Side
    mounted: Side

    async def agree(self, ask: Callable[[Side], Any]) -> Any:
        plain, mounted = await ask(self.plain), await ask(self.mounted)
        assert mounted == plain
        return mounted


@pytest.fixture
async def sides(plane: DataPlane, tmp_path: Path) -> AsyncIterator[Sides]:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<h1>hello</h1>")
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "404.html").write_text("nothing")
    agent = Agent("ref")
    agent.mount(reference_app(tmp_path))
    await plane.add(agent)
    listening = bind("127.0.0.1", 0)
    plain = Uvicorn(uvicorn.Config(reference_app(tmp_path), root_path=ROOT, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(plain.serve([listening]))
    await until(lambda: plain.started)
    yield Sides(Side(f"http://127.0.0.1:{listening.getsockname()[1]}", ""), Side(plane.url, ROOT))
    plain.should_exit = True
    await serving


@dataclass
class Asked:
    """One request."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path[:60]} {' '.join(self.headers)}"


async def answer(side: Side, asked: Asked) -> tuple[int, list[tuple[str, str]], Any]:
    """(status, headers, body) without what may differ."""
    sent = asked.body() if callable(asked.body) else asked.body
    async with (
        aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("User-Agent", "Accept-Encoding")) as client,
        client.request(
            asked.method,
            URL(side.target(asked.path), encoded=True),
            headers={"Host": HOST, **asked.headers},
            data=sent,
            allow_redirects=False,
        ) as response,
    ):
        try:
            content: Any = await response.read()
        except aiohttp.ClientPayloadError:
            content = b"broken off"
        body = shown(content)
        ignored = NOT_COMPARED if body is content else NOT_COMPARED | {"content-length"}  # of what is shown without something
        headers = [(name.lower(), value) for name, value in response.headers.items() if name.lower() not in ignored]
        return response.status, sorted(headers), body


def shown(content: bytes) -> Any:
    """The scope, if that is what the app answered, without what may differ."""
    with contextlib.suppress(ValueError):
        scope = json.loads(content)
        if isinstance(scope, dict) and "headers" in scope:
            return {**scope, "headers": sorted(header for header in scope["headers"] if header[0] not in NOT_SHOWN)}
    return content


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(5):
        yield b"x" * 1000


BYTES = "/static/data.bin"
ITEM = json.dumps({"name": "pen", "price": 1.5}).encode()
JSON = {"Content-Type": "application/json"}
CORS = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
PATHS = ["", "/", "/a/b", "/a//b", "//a", "/a%2Fb", "/%C3%BC%20", "/a;b=c", "/a+b", "/a%25b", "/%e2%98%83", "/a?",
         "/?x=1&y=%20&x=2", "/?q=a+b&r=%2B", "/?a=b?c", "/~a!$&'()*,:@"]  # fmt: skip
REQUESTS = [
    *(Asked("/scope" + path) for path in PATHS),
    *(Asked("/sub/scope" + path) for path in PATHS[:4]),
    *(Asked("/scope/x", method) for method in (*METHODS, "PURGE")),
    Asked("/scope/x", headers={"Cookie": "a=1; b=2", "Accept": "text/html;q=0.5, */*", "X-Own": "a, b"}),
    Asked("/scope/x", headers={"Authorization": "Bearer x", "X-HTTP-Method-Override": "PUT"}),
    Asked("/scope/x", headers={"X_Under_Score": "1", "X-Empty": "", "User-Agent": "me/1.0", "Accept-Language": "de"}),
    Asked("/scope/x", "POST", JSON, ITEM),
    Asked("/scope/x", "POST", {"Content-Type": "application/x-www-form-urlencoded"}, b"a=1&b=2"),
    Asked("/scope/x", "POST", {}, b""),
    Asked("/scope/x", "PUT", {}, b"x" * 300_000),
    Asked("/scope/x", "PUT", {}, chunks),
    Asked("/"),
    Asked("/nowhere"),
    Asked("/docs"),
    Asked("/redoc"),
    Asked("/docs/oauth2-redirect"),
    Asked("/openapi.json"),
    Asked("/sub"),
    Asked("/sub/"),
    Asked("/sub/docs"),
    Asked("/sub/openapi.json"),
    Asked("/sub/things"),
    Asked("/sub/things/"),
    Asked("/things"),
    Asked("/things?a=1&b=%20"),
    Asked("/things", "POST"),
    Asked("/things", "HEAD"),
    Asked("/things/"),
    Asked("/things/", "POST"),
    Asked("/things/", "DELETE"),
    Asked("/things/", "OPTIONS"),
    *(Asked(f"/to?where={where}&status={status}")
      for where, status in (("/x", 302), ("https://other.example/", 307), ("../things/", 303), ("%2F%C3%BC", 308))),
    Asked("/items/7", "POST", JSON, ITEM),
    Asked("/items/7?limit=9", "POST", JSON, ITEM),
    Asked("/items/x", "POST", JSON, ITEM),
    Asked("/items/7?limit=x", "POST", JSON, ITEM),
    Asked("/items/7", "POST", JSON, b"{"),
    Asked("/items/7", "POST", JSON, b"{}"),
    Asked("/items/7", "POST", {"Content-Type": "text/plain"}, ITEM),
    Asked("/items/7", "POST"),
    Asked("/items/7", "GET"),
    *(Asked(f"/status/{status}") for status in (200, 201, 204, 205, 206, 301, 304, 400, 403, 404, 409, 418)),
    *(Asked(f"/status/{status}") for status in (422, 429, 451, 499, 500, 501, 599)),
    *(Asked("/status/200", method) for method in METHODS),
    Asked("/status/204", "DELETE"),
    Asked("/stream"),
    Asked("/stream?pieces=0"),
    Asked("/stream?pieces=30&pause=0.005&kind=text/event-stream"),
    Asked("/stream", headers={"Accept": "text/event-stream"}),
    Asked("/cookies", headers={"Cookie": 'a=1; b="2"; swiftclaw=x; bad'}),
    Asked("/refused"),
    Asked("/fails"),
    Asked("/breaks"),
    Asked("/unframed"),
    Asked("/etag"),
    Asked("/etag", headers={"If-None-Match": '"1"'}),
    Asked("/etag", headers={"If-None-Match": '"2"'}),
    Asked("/big"),
    Asked("/big?size=2000000"),
    Asked("/big", headers={"Accept-Encoding": "gzip"}),
    Asked("/big?size=10", headers={"Accept-Encoding": "gzip"}),
    Asked(BYTES),
    Asked(BYTES, "HEAD"),
    Asked(BYTES, "POST"),
    *(Asked(BYTES, headers={"Range": wanted})
      for wanted in ("bytes=0-9", "bytes=100-", "bytes=-5", "bytes=99999-", "bytes=x", "lines=1-2")),
    Asked(BYTES, "HEAD", {"Range": "bytes=0-9"}),
    Asked(BYTES, headers={"Range": "bytes=0-9", "If-Range": '"other"'}),
    Asked(BYTES, headers={"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}),
    Asked("/static/page"),
    Asked("/static/page/"),
    Asked("/static/nowhere"),
    Asked("/static/..%2f..%2fetc/passwd"),
    Asked("/status/200", "OPTIONS", CORS),
    Asked("/status/200", "OPTIONS", {**CORS, "Origin": "https://b.example"}),
    Asked("/status/200", "PUT", {"Origin": "https://a.example", "Cookie": "a=1"}),
]  # fmt: skip


def test_there_are_at_least_a_hundred() -> None:
    assert len(REQUESTS) >= 100


async def test_responses_are_the_same(sides: Sides) -> None:
    different = []
    for asked in REQUESTS:
        plain, mounted = await answer(sides.plain, asked), await answer(sides.mounted, asked)
        if plain != mounted:
            different.append(f"{asked}\n  uvicorn: {str(plain)[:600]}\n  mounted: {str(mounted)[:600]}")
    assert not different, "\n".join(different)


async def test_redirects_lead_to_the_app(sides: Sides) -> None:
    """Where a browser would arrive."""
    for path in ("/things", "/sub/things", "/sub", "/static/page"):
        _, headers, _ = await answer(sides.mounted, Asked(path))
        assert dict(headers)["location"] == f"http://{HOST}{ROOT}{path}/"


async def test_background_tasks_run_after_the_answer(sides: Sides) -> None:
    async def run(side: Side) -> Any:
        answers = [await answer(side, Asked(f"/background?note={note}", "POST")) for note in ("a", "b")]
        for _ in range(200):
            log = json.loads((await answer(side, Asked("/log")))[2])
            if len(log) == 4:
                break
            await asyncio.sleep(0.02)
        return answers, sorted(log)

    assert (await sides.agree(run))[1] == ["A", "B", "a", "b"]


async def test_sessions_continue_from_request_to_request(sides: Sides) -> None:
    async def run(side: Side) -> Any:
        seen: list[Any] = []
        cookie = ""
        for path in ("/session", "/session", "/session/end", "/session"):
            status, headers, body = await answer(side, Asked(path, headers={"Cookie": cookie} if cookie else {}))
            (given,) = [value for name, value in headers if name == "set-cookie"]
            cookie, _, attributes = given.partition(";")
            seen.append((status, body, cookie.split("=")[0], attributes))
        return seen

    assert [entry[1] for entry in await sides.agree(run)] == [b"1", b"2", b'"ended"', b"1"]


@dataclass
class Conversation:
    """What a client does with one WebSocket: sends each message and waits for its echo, then closes."""

    path: str
    messages: tuple[Any, ...] = ()
    offered: tuple[str, ...] = ()
    close: tuple[int, str] | None = None

    def __str__(self) -> str:
        return f"{self.path} {len(self.messages)} {self.offered} {self.close}"


CONVERSATIONS = [
    Conversation("/ws/echo", ("a", "ü" * 100, b"\x00\xff", "", b""), close=(1000, "")),
    Conversation("/ws/echo", ("x" * 3_000_000, b"y" * 3_000_000), close=(1000, "done")),
    Conversation("/ws/echo", ("a",), ("graphql-ws", "other"), (4001, "bye")),
    Conversation("/ws/echo", (), ("unwanted",), (3000, "ü")),
    Conversation("/ws/echo", ("close",)),
    *(Conversation(f"/ws/close?code={code}") for code in (1000, 1001, 1011, 3999, 4999)),
    *(Conversation(f"/ws/close?code={code}&reason=why") for code in (1000, 1001, 1011, 3999, 4999)),
    *(Conversation(f"/ws/deny/{status}") for status in (200, 302, 400, 401, 403, 404, 429, 500, 503)),
    Conversation("/ws/scope"),
    Conversation("/ws/scope?a=1&b=%20"),
    Conversation("/ws/close-first"),
    Conversation("/ws/nowhere"),
    Conversation("/ws/typed/x"),
    Conversation("/ws/typed/7", ('{"a":1}',)),
    Conversation("/things/"),
]


async def talk(side: Side, conversation: Conversation) -> Any:
    """Everything that the client sees."""
    seen: list[Any] = []
    url = side.target(conversation.path).replace("http", "ws", 1)
    options: Any = {"subprotocols": list(conversation.offered) or None, "additional_headers": {"X-Own": "1"}}
    try:
        async with connect(url, max_size=None, proxy=None, compression=None, **options) as socket:
            assert socket.response is not None
            seen += [socket.subprotocol, compared(socket.response.headers.raw_items())]
            with contextlib.suppress(ConnectionClosed):
                for message in conversation.messages:
                    await socket.send(message)
                    seen.append(await asyncio.wait_for(socket.recv(), 10))
                if conversation.close:
                    await socket.close(*conversation.close)
                seen.append(await asyncio.wait_for(socket.recv(), 10))
                await asyncio.wait_for(socket.wait_closed(), 10)
            seen += [socket.close_code, socket.close_reason]
    except InvalidStatus as denied:
        response = denied.response
        seen += [response.status_code, compared(response.headers.raw_items()), bytes(response.body or b"")]
    return str(seen).replace(side.url.removeprefix("http://"), "HOST")


def compared(headers: Any) -> list[tuple[str, str]]:
    lower = [(name.lower(), value) for name, value in headers]
    return sorted(header for header in lower if header[0] not in NOT_COMPARED | {"sec-websocket-accept"})


async def test_websockets_are_the_same(sides: Sides) -> None:
    different = []
    for conversation in CONVERSATIONS:
        plain, mounted = await talk(sides.plain, conversation), await talk(sides.mounted, conversation)
        if plain != mounted:
            different.append(f"{conversation}\n  uvicorn: {plain[:600]}\n  mounted: {mounted[:600]}")
    assert not different, "\n".join(different)


async def test_an_app_sees_the_same_endings_of_its_websockets(sides: Sides) -> None:
    async def run(side: Side) -> Any:
        for code, reason in ((1000, ""), (4001, "bye"), (3000, "ü")):
            await talk(side, Conversation("/ws/echo", ("hi",), close=(code, reason)))
        for _ in range(200):
            log = json.loads((await answer(side, Asked("/log")))[2])
            if len(log) == 3:
                break
            await asyncio.sleep(0.02)
        return log

    assert await sides.agree(run) == [[1000, ""], [4001, "bye"], [3000, "ü"]]
