"""What the public port does with input that is no HTTP, or HTTP in two readings: vectors that are known, and chance.

Raw sockets against a gateway and an instance that notes everything that reaches it. Never a 500, never a hang, never a
request at the instance that the client did not ask for in so many words. Vectors: RFC 9112, "HTTP Desync Attacks" (Kettle),
llhttp's and HAProxy's advisories.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request as AppRequest
from starlette.responses import PlainTextResponse, Response

from cluster.messages import CHAT_PATH, KEY_HEADER, MESSAGES_PATH, SESSION_HEADER
from cluster.transport.http_protocol import ConnectionLimits
from deployments.instance.server import InstanceServer
from swiftclaw import Agent
from tests.deployments.conftest import KEY, DataPlane

HEAD_S, REQUEST_S = 1.0, 2.0  # how long the gateway waits for what does not come; a busy machine must not reach it
PATIENCE_S = 10.0  # of the client: who waits longer hangs
HOST = b"Host: a\r\n"
LAST = b"GET /-/routes HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"  # asked on the same connection, if that is open
SMUGGLED = b"GET /agents/rec/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Seen:
    """One request as the instance got it."""

    method: str
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


@dataclass
class Target:
    """A running gateway, and what has reached the instance behind it."""

    port: int
    seen: list[Seen] = field(default_factory=list)

    def ask(self, raw: bytes) -> Heard:
        self.seen.clear()
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            heard = Heard(connection)
            heard.say(raw)
            heard.listen(until_answered=True)
            if not heard.closed:
                heard.say(LAST)
                heard.listen()
        return heard

    def well(self) -> bool:
        """A good request on a new connection is answered, and reaches the instance as it is.

        The head of a bad one that came before may reach it only now; what hid behind that never does.
        """
        heard = self.ask(request(b"GET", b"/agents/rec/good", b"Connection: close\r\n"))
        paths = [seen.path for seen in self.seen]
        return heard.statuses == [200] and paths.count(b"/app/good") == 1 and {*paths} <= {b"/app/good", b"/app/x"}


class Heard:
    """What came back on one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.data = b""
        self.closed = False

    def say(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except ConnectionError:
            self.closed = True

    def listen(self, *, until_answered: bool = False) -> None:
        """Raises TimeoutError when the gateway neither answers nor closes."""
        while not self.closed and not (until_answered and self.answers()):
            try:
                piece = self._connection.recv(65536)
            except ConnectionError:
                piece = b""
            self.data += piece
            self.closed = not piece

    def answers(self) -> list[tuple[int, bytes]]:
        """(status, body) of each whole answer but the interim ones."""
        found, rest = [], self.data
        while (end := rest.find(b"\r\n\r\n")) >= 0:
            head, rest = rest[:end], rest[end + 4 :]
            status = int(head.split(b" ", 2)[1])
            if status < 200 and status != 101:
                continue
            length = re.search(rb"(?im)^content-length: (\d+)", head)
            size = int(length[1]) if length else 0
            if len(rest) < size:
                break
            found.append((status, rest[:size]))
            rest = rest[size:]
        return found

    @property
    def statuses(self) -> list[int]:
        return [status for status, _ in self.answers()]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """In a thread with the event loop that gateways have."""
    found = Target(0)
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    limits = ConnectionLimits(head_s=HEAD_S, keep_alive_s=HEAD_S, unread_s=5.0)
    blocks = {"rec": {"timeouts": {"request": REQUEST_S}, "loadBalancing": {"sessionAffinity": {"enabled": True}}}}
    plane = DataPlane(blocks=blocks, limits=limits)

    async def start() -> None:
        await plane.start()
        await plane.add(recorder(found))

    def run(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    with pytest.MonkeyPatch.context() as patch:
        answer = InstanceServer.__call__

        async def noted(self: InstanceServer, scope: Any, receive: Any, send: Any) -> None:
            found.seen.append(Seen(scope.get("method", scope["type"]), scope["raw_path"], list(scope["headers"])))
            await answer(self, scope, receive, send)

        patch.setattr(InstanceServer, "__call__", noted)
        run(start())
        found.port = plane.gateway.port
        yield found
        run(plane.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def recorder(target: Target) -> Agent:
    agent = Agent("rec")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
            return
        seen = target.seen[-1] if target.seen else None
        body = await AppRequest(scope, receive).body()
        if seen is not None:
            seen.body = body
        response: Response = PlainTextResponse("ok")
        await response(scope, receive, send)

    agent.mount(app)

    @agent.on_message
    async def handle(message: str, session_id: str, user_id: str | None = None) -> str:
        return "ok"

    return agent


def request(method: bytes, path: bytes, headers: bytes = b"", body: bytes = b"", host: bytes = HOST) -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\n" + host + headers + b"\r\n" + body


def get(headers: bytes) -> bytes:
    return request(b"GET", b"/agents/rec/x", headers)


def post(headers: bytes, body: bytes) -> bytes:
    return request(b"POST", b"/agents/rec/x", headers, body)


def chunked(body: bytes, headers: bytes = b"Transfer-Encoding: chunked\r\n") -> bytes:
    return post(headers, body)


LINES = {
    "nothing that is HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "nul": b"\x00" * 20 + b"\r\n\r\n",
    "no method": b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /agents/rec/x\r\n\r\n",
    "an unknown method": b"FETCH /agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in lower case": b"get /agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version 0.9": b"GET /agents/rec/x HTTP/0.9\r\n" + HOST + b"\r\n",
    "version 1.2": b"GET /agents/rec/x HTTP/1.2\r\n" + HOST + b"\r\n",
    "version 2.0": b"GET /agents/rec/x HTTP/2.0\r\n" + HOST + b"\r\n",
    "version 11": b"GET /agents/rec/x HTTP/11\r\n" + HOST + b"\r\n",
    "version in lower case": b"GET /agents/rec/x http/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space in the path": b"GET /agents/rec/x y HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tab in the line": b"GET\t/agents/rec/x\tHTTP/1.1\r\n" + HOST + b"\r\n",
    "line feeds only": b"GET /agents/rec/x HTTP/1.1\nHost: a\n\n",
    "carriage returns only": b"GET /agents/rec/x HTTP/1.1\rHost: a\r\r",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "connect to a path": b"CONNECT /agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "trace": b"TRACE /agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "another scheme": b"GET ftp://a/agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host in the target": b"GET http:///agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute target without a host header": b"GET http://a/agents/rec/x HTTP/1.1\r\n\r\n",
    "a user in the target": b"GET http://u@a/agents/rec/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /agents/rec/x#y HTTP/1.1\r\n" + HOST + b"\r\n",
    "a star": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path that is not ASCII": b"GET /agents/rec/\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path with a control character": b"GET /agents/rec/\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path with nul": b"GET /agents/rec/\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path that is too long": b"GET /agents/rec/" + b"x" * 16_500 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path beyond the parser's arithmetic": b"GET /agents/rec/" + b"x" * 65_536 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
}
HEADERS = {
    "no host": b"GET /agents/rec/x HTTP/1.1\r\n\r\n",
    "two hosts": get(b"Host: a\r\n"),
    "two other hosts": get(b"Host: b\r\n"),
    "a host with a path": request(b"GET", b"/agents/rec/x", host=b"Host: a/b\r\n"),
    "a host with a space": request(b"GET", b"/agents/rec/x", host=b"Host: a b\r\n"),
    "a folded header": get(b"X-A: b\r\n c\r\n"),
    "a fold before the first": b"GET /agents/rec/x HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "a space before the colon": get(b"X-A : b\r\n"),
    "no colon": get(b"X-A b\r\n"),
    "no name": get(b": b\r\n"),
    "nul in a name": get(b"X-\x00A: b\r\n"),
    "nul in a value": get(b"X-A: b\x00c\r\n"),
    "a control character in a value": get(b"X-A: b\x08c\r\n"),
    "a carriage return in a value": get(b"X-A: b\rc\r\n"),
    "a line feed that ends a header": get(b"X-A: b\nX-B: c\r\n"),
    "a name that is not ASCII": get(b"X-\xe9: b\r\n"),
    "too many": get(b"X-A: b\r\n" * 300),
    "one that is too large": get(b"X-A: " + b"b" * 70_000 + b"\r\n"),
    "one without an end": b"GET /agents/rec/x HTTP/1.1\r\n" + HOST + b"X-A: " + b"b" * 140_000,
}
LENGTHS = {
    "length and chunks": chunked(b"0\r\n\r\n" + SMUGGLED, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    "chunks and length": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: chunked\r\nContent-Length: 100\r\n"),
    "two lengths": post(b"Content-Length: 5\r\nContent-Length: 80\r\n", b"hello" + SMUGGLED),
    "the same length twice": post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello" + SMUGGLED),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n", b"hello" + SMUGGLED),
    "a negative length": post(b"Content-Length: -5\r\n", SMUGGLED),
    "a length with a plus": post(b"Content-Length: +5\r\n", b"hello" + SMUGGLED),
    "a length in hexadecimal": post(b"Content-Length: 0x5\r\n", b"hello" + SMUGGLED),
    "a length with an underscore": post(b"Content-Length: 1_0\r\n", b"hello" + SMUGGLED),
    "a length of other digits": post("Content-Length: \u0665\r\n".encode(), b"hello" + SMUGGLED),
    "a length that overflows": post(b"Content-Length: 18446744073709551621\r\n", b"hello" + SMUGGLED),
    "no length": post(b"Content-Length:\r\n", b"hello" + SMUGGLED),
    "xchunked": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: xchunked\r\n"),
    "chunked, identity": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: chunked, identity\r\n"),
    "identity, chunked": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: identity, chunked\r\n"),
    "gzip, chunked": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: gzip, chunked\r\n"),
    "identity": post(b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", b"hello" + SMUGGLED),
    "chunked twice": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "chunked, then another": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"),
    "chunked in quotes": chunked(b"0\r\n\r\n" + SMUGGLED, b'Transfer-Encoding: "chunked"\r\n'),
    "chunked after a vertical tab": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding: \x0bchunked\r\n"),
    "chunked on a line of its own": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding:\r\n chunked\r\n"),
    "a space before the colon": chunked(b"0\r\n\r\n" + SMUGGLED, b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n"),
    "chunks in HTTP/1.0": chunked(b"0\r\n\r\n" + SMUGGLED).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
}  # fmt: skip
CHUNKS = {
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with a plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with spaces": b"5 \r\nhello\r\n0\r\n\r\n",
    "a size with a space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "a size that overflows": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size that is too small": b"4\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a size that is too large": b"6\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "line feeds": b"5\nhello\n0\n\n",
    "a line feed after the size": b"5\nhello\r\n0\r\n\r\n",
    "other bytes after the data": b"5\r\nhelloXX0\r\n\r\n",
    "an extension with a line feed": b'5;a="b\nc"\r\nhello\r\n0\r\n\r\n',
    "an extension with a carriage return": b"5;a=b\rc\r\nhello\r\n0\r\n\r\n",
    "an extension without an end": b"5;" + b"a" * 600_000,
    "a trailer without an end": b"5\r\nhello\r\n0\r\nx-trailer: " + b"a" * 600_000,
    "a trailer with a length": b"0\r\ncontent-length: 50\r\n\r\n" + SMUGGLED,
    "a trailer that is folded": b"0\r\nx-a: b\r\n c\r\n\r\n",
}


def named(vectors: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("vector", vectors.values(), ids=vectors)


class TestRefused:
    """Answered once with a 4xx or 501, 505, and closed; nothing reaches the instance."""

    def refused(self, target: Target, raw: bytes) -> int:
        heard = target.ask(raw)
        assert len(heard.statuses) == 1, heard.data
        (status,) = heard.statuses
        assert 400 <= status < 500 or status in (501, 505)
        assert target.seen == []
        assert b"connection: close" in heard.data.lower()
        assert json.loads(heard.answers()[0][1])["error"]["type"] == "bad_request"
        assert target.well()
        return status

    @named(LINES)
    def test_request_lines(self, target: Target, vector: bytes) -> None:
        self.refused(target, vector)

    @named(HEADERS)
    def test_headers(self, target: Target, vector: bytes) -> None:
        self.refused(target, vector)

    @named(LENGTHS)
    def test_bodies_whose_length_is_in_doubt(self, target: Target, vector: bytes) -> None:
        assert self.refused(target, vector) == 400

    def test_which_status_says_what(self, target: Target) -> None:
        assert self.refused(target, LINES["version 2.0"]) == 505
        assert self.refused(target, LINES["a path that is too long"]) == 414
        assert self.refused(target, LINES["connect"]) == 501
        assert self.refused(target, HEADERS["too many"]) == 431
        assert self.refused(target, HEADERS["one that is too large"]) == 431
        assert self.refused(target, HEADERS["one without an end"]) == 431


@named(CHUNKS)
def test_a_bad_chunk_ends_the_request_and_the_connection(target: Target, vector: bytes) -> None:
    """The instance may have seen its beginning; it never sees it whole, nor what hides behind it."""
    heard = target.ask(chunked(vector))
    assert heard.statuses == [400]
    assert all(seen.path == b"/app/x" and seen.body == b"" for seen in target.seen) and len(target.seen) <= 1
    assert target.well()


GOOD = {
    "a length": (post(b"Content-Length: 5\r\n", b"hello"), b"hello"),
    "a length with a space behind": (post(b"Content-Length: 0\r\n", b""), b""),
    "chunks": (chunked(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), b"hello"),
    "chunks with zeros before": (chunked(b"0005\r\nhello\r\n000\r\n\r\n"), b"hello"),
    "chunked after a tab": (chunked(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: \tchunked\r\n"), b"hello"),
    "chunked in capitals": (chunked(b"5\r\nhello\r\n0\r\n\r\n", b"TRANSFER-ENCODING: CHUNKED\r\n"), b"hello"),
    "an extension": (chunked(b'5;a=b;c="d"\r\nhello\r\n0\r\n\r\n'), b"hello"),
    "a trailer": (chunked(b"5\r\nhello\r\n0\r\nx-trailer: 1\r\nhost: b\r\n\r\n"), b"hello"),
    "a request in the body": (post(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED), SMUGGLED),
    "a request in a chunk": (chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)), SMUGGLED),
    "a body of a GET": (get(b"Content-Length: 5\r\n") + b"hello", b"hello"),
    "an absolute target": (b"POST http://A/agents/rec/x HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "a length that Connection names": (post(b"Connection: content-length\r\nContent-Length: 5\r\n", b"hello"), b"hello"),
    "a large body": (post(b"Content-Length: 200000\r\n", b"x" * 200_000), b"x" * 200_000),
    "a large body whose length Connection names": (
        post(b"Connection: content-length\r\nContent-Length: 200000\r\n", b"x" * 200_000),
        b"x" * 200_000,
    ),
    "blank lines before": (b"\r\n\r\n" + post(b"Content-Length: 5\r\n", b"hello"), b"hello"),
    "values that are not ASCII": (post(b"X-A: \xe9\xff\r\nX-B: \xc3\xa9\r\nContent-Length: 5\r\n", b"hello"), b"hello"),
}


@pytest.mark.parametrize("authority", [b"a", b"A", b"a:80", b"b", b"example.com:8080", b"[::1]:80"])
@pytest.mark.parametrize("host", [b"a", b"a:80", b"c"])
def test_the_host_of_an_absolute_target_takes_the_place_of_the_header(target: Target, authority: bytes, host: bytes) -> None:
    raw = b"GET http://%s/agents/rec/x HTTP/1.1\r\nHost: %s\r\n\r\n" % (authority, host)
    assert target.ask(raw).statuses == [200, 200]
    (seen,) = target.seen
    assert seen.path == b"/app/x" and seen.all(b"host") == [authority.lower()]
    assert seen.all(b"x-forwarded-host") == [authority.lower()]


@pytest.mark.parametrize(("raw", "body"), GOOD.values(), ids=GOOD)
def test_what_is_sound_arrives_once_and_the_connection_goes_on(target: Target, raw: bytes, body: bytes) -> None:
    heard = target.ask(raw)
    assert heard.statuses == [200, 200]
    (seen,) = target.seen
    assert (seen.path, seen.body) == (b"/app/x", body)
    assert seen.all(b"x-trailer") == [] and seen.all(b"host") == [b"a"]


class TestSeveralRequests:
    def test_pipelined_ones_are_answered_in_their_order(self, target: Target) -> None:
        both = post(b"Content-Length: 3\r\n", b"one") + post(b"Content-Length: 3\r\n", b"two")
        heard = target.ask(both)
        assert heard.statuses == [200, 200, 200]
        assert [seen.body for seen in target.seen] == [b"one", b"two"]

    def test_thousands_of_them_are_not_kept_in_memory(self, target: Target) -> None:
        heard = target.ask(post(b"Content-Length: 3\r\n", b"one") * 2000)
        assert set(heard.statuses) == {200} and len(heard.statuses) < 1000

    @pytest.mark.parametrize("bad", [b"\x00\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n", LENGTHS["two lengths"], HEADERS["no host"]])
    def test_a_bad_one_behind_a_good_one_does_not_touch_its_answer(self, target: Target, bad: bytes) -> None:
        heard = target.ask(post(b"Content-Length: 5\r\n", b"hello") + bad)
        assert heard.statuses[0] == 200 and len(heard.statuses) <= 2
        assert [seen.body for seen in target.seen] == [b"hello"]
        assert heard.statuses[1:] in ([], [400], [505])

    def test_a_body_that_follows_an_early_answer_is_never_taken_for_a_request(self, target: Target) -> None:
        raw = request(b"POST", b"/agents/nobody/x", b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED)
        heard = target.ask(raw)
        assert heard.statuses == [404, 200] and target.seen == []

    def test_nor_is_one_that_was_announced_with_expect(self, target: Target) -> None:
        """Whether it follows after an answer without "100 Continue" is not known: so the connection ends."""
        raw = request(b"POST", b"/nowhere", b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(SMUGGLED), b"")
        heard = target.ask(raw)
        assert heard.statuses == [404] and b"connection: close" in heard.data.lower()

    def test_expect_is_answered_with_continue_and_not_sent_on(self, target: Target) -> None:
        heard = target.ask(post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"))
        assert heard.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
        assert [(seen.body, seen.all(b"expect")) for seen in target.seen] == [(b"hello", [])]

    def test_after_close_nothing_is_answered(self, target: Target) -> None:
        heard = target.ask(get(b"Connection: close\r\n") + SMUGGLED)
        assert heard.statuses == [200] and [seen.path for seen in target.seen] == [b"/app/x"]


TRICKS = [
    b"/agents/rec/%2e%2e/%2e%2e/-/watch", b"/agents/rec/../../-/watch", b"/agents/rec/..;/-/watch", b"/agents/rec//-/watch",
    b"/agents/rec/%2f%2e%2e%2f-%2fwatch", b"/agents/rec/-/watch", b"/agents/rec/-/check", b"/agents/rec/-/kill",
    b"/agents/rec/-/drain", b"/agents/rec/..%2f-%2fdrain", b"/agents/rec/.%2e/-/kill", b"/agents/rec/%252e%252e/-/kill",
    b"/agents/rec/\\..\\-\\watch", b"/agents/rec/..%5c-%5cwatch", b"/agents/rec/%00", b"/agents/rec/%0d%0aX:%20y",
    b"/agents/rec/%c0%ae%c0%ae/-/watch", b"/agents/rec/%ff%fe", b"/agents/rec/%", b"/agents/rec/%zz",
    b"/agents/rec/x?y=/../-/watch", b"/agents/rec?/-/watch", b"/agents/rec/?", b"/agents/rec/http://b/-/watch",
    b"/agents/rec/@b:1/-/watch",
    b"/agents/rec/:80/x",    b'/agents/rec/"<>^`{|}', b"/agents/rec/[::1]", b"/agents/rec/%E2%80%AE",
    b"/agents/rec/messages/../../-/watch",
    b"/agents/rec/messages/", b"/agents/rec/%6dessages", b"/agents/rec/" + b"../" * 3000, b"/agents/rec/x?" + b"a=b&" * 3000,
    b"http://a/agents/rec/../../-/watch", b"/agents/rec/x;y=z", b"/agents/rec/?a?b??c", b"/agents/rec/%u002e",
]  # fmt: skip
NOWHERE = [
    b"//agents/rec/x", b"/%61gents/rec/x", b"/agents//rec/x", b"/agents/%72ec/x", b"/agents/../agents/rec/x",
    b"/agents/rec%2fx", b"/-/watch", b"/-/check", b"/-/kill", b"/-/drain", b"/-/ping", b"/-/peers", b"/app/x", b"/messages",
    b"/chat", b"/./agents/rec/x", b"/",
    b"/agents/rec%00/x", b"/agents/rec\\x", b"/agents/rec;x/y", b"/agents/./rec/x", b"/agents/", b"/agents", b"http://a",
]  # fmt: skip


class TestPaths:
    @pytest.mark.parametrize("path", TRICKS, ids=lambda path: repr(path[:40]))
    def test_what_is_below_an_agent_arrives_below_its_app_unchanged(self, target: Target, path: bytes) -> None:
        """No dot is resolved, nothing is decoded or encoded: one reading of a path, and it is the app's."""
        heard = target.ask(request(b"GET", path))
        assert heard.statuses == [200, 200]
        raw = path.removeprefix(b"http://a").removeprefix(b"/agents/rec").partition(b"?")[0]
        assert [seen.path for seen in target.seen] == [b"/app" + (raw or b"/")]

    @pytest.mark.parametrize("path", NOWHERE, ids=repr)
    def test_what_is_not_is_404_and_reaches_nobody(self, target: Target, path: bytes) -> None:
        heard = target.ask(request(b"GET", path))
        assert heard.statuses == [404, 200] and target.seen == []


INTERNAL = (
    b"x-swiftclaw-key",
    b"x-swiftclaw-session",
    b"x-swiftclaw-load",
    b"x-swiftclaw-not-executed",
    b"x-swiftclaw-instance",
)
ODD = [
    b"a\tb",
    b"a;b,c=d",
    b"%0d%0aX-Evil: 1",
    b"\xff\xfe",
    "\u202e\u2028".encode(),
    b'"',
    b"x" * 5000,
    b"../../-/watch",
    b"{}",
]
ODD_TEXT = ["a\r\nX-Evil: 1", "a\nb", "\x00", "\ud800", "\u202e", "; Path=/; Domain=b", "x" * 5000, "%0d%0aX-Evil: 1", "é"]


class TestInjection:
    @pytest.mark.parametrize("name", [*INTERNAL, b"x-swiftclaw-version"])
    def test_a_client_cannot_speak_with_the_clusters_voice(self, target: Target, name: bytes) -> None:
        said = b"%s: forged\r\n%s: forged\r\n" % (name, name.title())
        for raw in (
            get(said),
            get(said + b"Connection: x, %s\r\n" % KEY_HEADER),
            get(said + b"Connection: x-request-id, host\r\n"),
        ):
            assert target.ask(raw).statuses == [200, 200]
            (seen,) = target.seen
            assert b"forged" not in b"".join(value for _, value in seen.headers)
            assert seen.all(KEY_HEADER) == [KEY.encode()]
            assert len(seen.all(b"x-request-id")) == 1

    @pytest.mark.parametrize("name", [*INTERNAL, b"x-forwarded-for", b"host", b"cookie"])
    def test_a_trailer_is_no_header(self, target: Target, name: bytes) -> None:
        assert target.ask(chunked(b"5\r\nhello\r\n0\r\n%s: forged\r\n\r\n" % name)).statuses == [200, 200]
        (seen,) = target.seen
        assert b"forged" not in b"".join(value for _, value in seen.headers)

    @pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value[:20]))
    @pytest.mark.parametrize("name", [b"x-session-id", b"x-user-id", b"x-request-id", b"cookie", b"x-swiftclaw-region"])
    def test_odd_values_of_headers_stay_values(self, target: Target, name: bytes, value: bytes) -> None:
        cookie = b"swiftclaw_session=" if name == b"cookie" else b""
        heard = target.ask(get(b"%s: %s%s\r\n" % (name, cookie, value)))
        assert heard.statuses == [200, 200]
        self.unharmed(target, heard)

    @pytest.mark.parametrize("value", ODD_TEXT, ids=lambda value: ascii(value[:20]))
    @pytest.mark.parametrize("name", ["session_id", "user_id", "message"])
    def test_odd_values_in_a_body_stay_values(self, target: Target, name: str, value: str) -> None:
        body = json.dumps({"message": "hi", name: value}).encode()
        heard = target.ask(request(b"POST", b"/agents/rec/messages", b"Content-Length: %d\r\n" % len(body), body))
        assert heard.statuses == [200, 200]
        self.unharmed(target, heard)
        (seen,) = target.seen
        if name == "session_id":
            told = unquote(seen.all(SESSION_HEADER)[0].decode(), errors="surrogatepass")
            assert told == value[:256].replace("\ud800", "\ufffd")

    def unharmed(self, target: Target, heard: Heard) -> None:
        (seen,) = target.seen
        names = {key for key, _ in seen.headers}
        assert b"x-evil" not in names and len(seen.all(SESSION_HEADER)) <= 1
        assert re.search(rb"(?im)^x-evil", heard.data) is None
        assert re.fullmatch(rb"[!-~]{1,128}", seen.all(b"x-request-id")[0])


KEYS = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
HANDSHAKES = {
    "no key": get(UPGRADE + b"Sec-WebSocket-Version: 13\r\n"),
    "a short key": get(UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"),
    "a key that is not base64": get(UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: !!!\r\n"),
    "two keys": get(UPGRADE + KEYS + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
    "another version": get(UPGRADE + KEYS.replace(b"13", b"8")),
    "no version": get(UPGRADE + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
    "a POST": post(UPGRADE + KEYS, b""),
    "a body": get(UPGRADE + KEYS + b"Content-Length: 5\r\n") + b"hello",
    "chunks": get(UPGRADE + KEYS + b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    "bytes behind it": get(UPGRADE + KEYS) + SMUGGLED,
    "more headers than it may have": get(UPGRADE + KEYS + b"X-A: b\r\n" * 200),
    "a header longer than it may be": get(UPGRADE + KEYS + b"X-A: " + b"b" * 10_000 + b"\r\n"),
}


class TestUpgrades:
    @named(HANDSHAKES)
    def test_a_bad_handshake_is_refused_and_the_connection_closed(self, target: Target, vector: bytes) -> None:
        heard = target.ask(vector)
        assert len(heard.statuses) == 1 and 400 <= heard.statuses[0] < 500, heard.data
        assert target.seen == [] and target.well()

    def test_http_1_0_has_no_upgrades(self, target: Target) -> None:
        """RFC 9110, section 7.8: the field is ignored."""
        assert target.ask(get(UPGRADE + KEYS).replace(b"HTTP/1.1", b"HTTP/1.0")).statuses == [200]
        assert not target.seen[0].all(b"upgrade")

    def test_a_good_one_is_accepted(self, target: Target) -> None:
        assert target.ask(get(UPGRADE + KEYS)).statuses[0] == 101
        assert [seen.path for seen in target.seen] == [b"/app/x"]

    def test_one_behind_a_request_that_is_not_answered_yet_is_not_taken(self, target: Target) -> None:
        heard = target.ask(post(b"Content-Length: 5\r\n", b"hello") + get(UPGRADE + KEYS))
        assert heard.statuses == [200] and [seen.body for seen in target.seen] == [b"hello"]

    @pytest.mark.parametrize("protocol", [b"h2c", b"TLS/1.0", b"websocket, h2c", b"xwebsocket", b"\xff"])
    def test_others_are_answered_as_if_not_asked_for(self, target: Target, protocol: bytes) -> None:
        headers = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQ\r\n" % protocol
        for raw in (get(headers), post(headers + b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED)):
            assert target.ask(raw).statuses == [200, 200]
            (seen,) = target.seen
            assert seen.path == b"/app/x" and not seen.all(b"upgrade") and not seen.all(b"http2-settings")
            assert seen.body == (SMUGGLED if seen.method == "POST" else b"")

    def test_many_of_them_are_no_more_work_than_other_requests(self, target: Target) -> None:
        raw = request(b"GET", b"/-/routes", b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
        assert set(target.ask(raw * 2000).statuses) == {200}


# Chance.

VALID = [
    get(b"X-A: b\r\nConnection: keep-alive\r\n"),
    post(b"Content-Length: 5\r\nX-Session-Id: s\r\n", b"hello"),
    chunked(b"5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"),
    request(b"POST", b"/agents/rec/messages", b"Content-Length: 17\r\n", b'{"message": "hi"}'),
    request(b"POST", b"/v1/chat/completions", b"Content-Length: 2\r\n", b"{}"),
    get(UPGRADE + KEYS),
]
SOUP = [
    b"GET ", b"POST ", b"/agents/rec/x", b"/agents/rec/messages", b"/v1/models/", b" HTTP/1.1", b" HTTP/1.0", b"\r\n",
    b"\n", b"\r", b"Host: a", b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"0", b"5", b"hello", b"-1", b";",
    b": ", b" ",
    b"\t", b"\x00", b"Connection: ", b"Upgrade", b"close", b"keep-alive", b"Expect: 100-continue", b"\xff", b"../", b"%2e",
    b"%00", b"?", b"#",
    b"//", b'{"message": 1}', b"X-Session-Id: ", b"\r\n\r\n", b"0\r\n\r\n", b"{", b"Content-Type: application/json",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound request, or two, with some bytes changed, lost, doubled or added."""
    raw = bytearray(b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(1, 4))):
        at, count = draw(st.integers(0, len(raw))), draw(st.integers(0, 6))
        put = draw(st.one_of(st.binary(max_size=3), st.sampled_from(SOUP), st.just(bytes(raw[at : at + count]) * 2)))
        raw[at : at + count] = put
    return bytes(raw)


some = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def unshaken(target: Target, raw: bytes) -> None:
    heard = target.ask(raw)
    assert {500, 502, 503}.isdisjoint(heard.statuses), heard.data
    assert len(target.seen) <= raw.count(b"HTTP/1.")
    for seen in target.seen:
        assert seen.path.startswith(b"/app/") or seen.path in (MESSAGES_PATH.encode(), CHAT_PATH.encode())
        assert seen.all(KEY_HEADER) == [KEY.encode()]


@some
@given(raw=damaged())
def test_a_damaged_request_shakes_nothing(target: Target, raw: bytes) -> None:
    unshaken(target, raw)


@some
@given(raw=st.lists(st.sampled_from(SOUP), max_size=30).map(b"".join))
def test_pieces_of_http_in_any_order_shake_nothing(target: Target, raw: bytes) -> None:
    unshaken(target, raw)


@some
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#?"), max_size=40))
def test_any_path_below_an_agent_stays_below_its_app(target: Target, path: str) -> None:
    heard = target.ask(request(b"GET", b"/agents/rec/" + path.encode()))
    assert heard.statuses in ([200, 200], [405, 200])  # `messages` is POSTed to
    assert all(seen.path == b"/app/" + path.encode() for seen in target.seen)


def test_after_all_this_it_is_well(target: Target) -> None:
    assert target.well()
