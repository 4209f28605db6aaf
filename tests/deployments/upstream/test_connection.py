"""A kept connection to an instance: every way an answer can come, and every way it can fail to."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from deployments.upstream.connection import (
    Connection,
    ConnectionBroken,
    ConnectionState,
    InstanceRequest,
    InstanceResponse,
    NotConnected,
)
from deployments.upstream.connection_pool import ConnectionPool

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PATIENCE_S = 20.0
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


class Instance:
    """A server that does what its script says, and counts the connections that it was asked on."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.departed = asyncio.Event()  # a connection of it was closed by the other side
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self._script(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.departed.set()
        finally:
            writer.close()


def says(*pieces: bytes, then_closes: bool = False) -> Script:
    """Answers each request with these pieces, each in a packet of its own."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if then_closes:
            writer.close()

    return script


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0)


class Asking:
    """One pool of connections to one instance."""

    def __init__(self, pool: ConnectionPool, instance: Instance, port: int) -> None:
        self.pool, self.instance, self.port = pool, instance, port

    async def head(
        self, method: str = "GET", body: bytes | AsyncIterator[bytes] | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> InstanceResponse:
        return await self.pool.request(method, "127.0.0.1", self.port, "/x?y=1", headers, body)

    async def whole(self, method: str = "GET", body: bytes | AsyncIterator[bytes] | None = None) -> tuple[int, bytes]:
        answer = await self.head(method, body)
        try:
            return answer.status, b"".join([piece async for piece in answer.pieces()])
        finally:
            answer.close()


@asynccontextmanager
async def instance(script: Script, idle_s: float = 30.0) -> AsyncIterator[Asking]:
    made = Instance(script)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(made.serve(reader, writer))
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await task

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**20)
    pool = ConnectionPool(idle_s)
    try:
        yield Asking(pool, made, server.sockets[0].getsockname()[1])
    finally:
        await pool.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    ends = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < ends
        await asyncio.sleep(0.005)


async def test_a_pool_and_a_connection_state_their_situation() -> None:
    async with instance(says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok")) as asking:
        assert repr(asking.pool) == "<ConnectionPool: 0 active, 0 idle, 0 connecting or closing>"
        assert await asking.whole() == (200, b"ok")
        (connection,) = asking.pool._open
        assert repr(connection) == f"<Connection to 127.0.0.1:{asking.port}: idle>"
        assert repr(asking.pool) == "<ConnectionPool: 0 active, 1 idle, 0 connecting or closing>"
        connection.abort()
        assert connection.state is ConnectionState.CLOSED
    async with instance(silent) as asking:
        waiting = asyncio.create_task(asking.head())
        await until(lambda: asking.instance.heads != [])
        assert repr(asking.pool) == "<ConnectionPool: 1 active, 0 idle, 0 connecting or closing>"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    unconnected = Connection(lambda _: None, lambda _: None)
    assert repr(unconnected) == "<Connection: connecting>"


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-after\r\n\r\n"
    b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nx-after: 1\r\n\r\n"
)


@pytest.mark.parametrize(
    ("said", "status", "body"),
    [
        (OK, 200, b"ok"),
        (CHUNKED, 200, b"abcde"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", 304, b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK, 200, b"ok"),
    ],
    ids=["length", "chunks", "204", "304", "empty", "interim"],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["one packet", "byte by byte"])
async def test_an_answer_is_read_to_its_end_and_the_connection_used_again(
    said: bytes, status: int, body: bytes, at_once: bool
) -> None:
    pieces = [said] if at_once else [bytes([byte]) for byte in said]
    async with instance(says(*pieces)) as asking:
        for _ in range(3):
            assert await asking.whole() == (status, body)
        assert asking.instance.connections == 1


async def test_headers_arrive_as_they_were_and_trailers_are_no_headers() -> None:
    async with instance(says(CHUNKED)) as asking:
        answer = await asking.head()
        assert list(answer.headers) == [(b"Transfer-Encoding", b"chunked"), (b"Trailer", b"x-after")]
        answer.close()


@given(
    body=st.binary(max_size=2000),
    chunks=st.none() | st.lists(st.integers(1, 700), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 2500), max_size=12),
)
async def test_where_packets_end_changes_nothing(body: bytes, chunks: list[int] | None, cuts: list[int]) -> None:
    if chunks is None:
        said = b"HTTP/1.1 201 Created\r\nx-a: b\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    else:
        said, left = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n", body
        while left:
            size = chunks[len(left) % len(chunks)]
            said += b"%x\r\n%b\r\n" % (len(left[:size]), left[:size])
            left = left[size:]
        said += b"0\r\n\r\n"
    ends = [0, *sorted({cut for cut in cuts if cut < len(said)}), len(said)]
    async with instance(says(*(said[a:b] for a, b in pairwise(ends)))) as asking:
        answer = await asking.head()
        assert (b"x-a", b"b") in answer.headers
        assert b"".join([piece async for piece in answer.pieces()]) == body
        assert await asking.whole() == (201, body)
        assert asking.instance.connections == 1


async def test_the_answer_to_head_has_no_body_whatever_it_announces() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = asking.instance.heads[-1].startswith(b"HEAD")
        writer.write(OK[:-2] if head else OK)

    async with instance(script) as asking:
        for _ in range(2):
            assert await asking.whole("HEAD") == (200, b"")
            assert await asking.whole("GET") == (200, b"ok")
        assert asking.instance.connections == 1


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with instance(says(b"HTTP/1.1 200 OK\r\n\r\n", b"all", b" of it", then_closes=True)) as asking:
        assert await asking.whole() == (200, b"all of it")
        assert await asking.whole() == (200, b"all of it")
        assert asking.instance.connections == 2


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
async def test_a_connection_that_is_to_be_closed_is_not_used_again(head: bytes) -> None:
    async with instance(says(head + b"content-length: 2\r\n\r\nok")) as asking:
        assert await asking.whole() == (200, b"ok")
        assert await asking.whole() == (200, b"ok")
        assert asking.instance.connections == 2


@pytest.mark.parametrize(
    "rest",
    [b"content-length: 10\r\n\r\nhalf", b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
    ids=["length", "chunks"],
)
async def test_a_body_that_ends_early_breaks_off_after_what_had_arrived(rest: bytes) -> None:
    async with instance(says(b"HTTP/1.1 200 OK\r\n" + rest, then_closes=True)) as asking:
        answer, got = await asking.head(), b""
        with pytest.raises(ConnectionBroken):
            async for piece in answer.pieces():
                got += piece
        assert got == b"half" and answer.whole() is None
        answer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=[
        "nothing",
        "half a head",
        "another protocol",
        "an upgrade that nobody wanted",
        "a folded header",
        "a space before the colon",
        "two lengths",
        "a length that is none",
        "a length and chunks",
    ],
)
async def test_no_answer_is_a_broken_one(said: bytes) -> None:
    async with instance(says(said, then_closes=True)) as asking:
        with pytest.raises(ConnectionBroken):
            await asking.head()


async def test_a_head_without_end_is_not_waited_for() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: %b\r\n" % (b"a" * 1000))
            await writer.drain()

    async with instance(script) as asking:
        with pytest.raises(ConnectionBroken, match="more than 1048576 bytes"):
            await asking.head()


async def test_nobody_listening_and_nobody_accepting_are_not_connected() -> None:
    pool = ConnectionPool()
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        with pytest.raises(NotConnected):
            await pool.request("GET", "127.0.0.1", port, "/", [], None)
        listening.listen(0)
        for waiting in (first, second):  # the queue of those that wait to be accepted is full
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with pytest.raises(NotConnected, match=r"no connection within 0\.2 s"):
            await pool.request("GET", "127.0.0.1", port, "/", [], None, connect_s=0.2)
    await pool.close()


async def test_one_who_waits_for_an_answer_no_longer_is_seen_to_leave() -> None:
    async with instance(silent) as asking:
        task = asyncio.create_task(asking.head())
        await until(lambda: bool(asking.instance.heads))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(asking.instance.departed.wait(), PATIENCE_S)


async def test_a_connection_that_ends_as_it_is_made_is_no_connection() -> None:
    resets = 5
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        pool = ConnectionPool()
        for _ in range(resets):
            asked = asyncio.create_task(pool.request("GET", "127.0.0.1", listening.getsockname()[1], "/", [], None))
            for _ in range(3):
                await asyncio.sleep(0)  # it is about to connect
            accepted, _ = listening.accept()  # the loop does nothing meanwhile, and finds both at once: made, and reset
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            with pytest.raises((NotConnected, ConnectionBroken)):
                await asyncio.wait_for(asked, PATIENCE_S)
        await pool.close()


async def test_who_gives_up_as_the_answer_arrives_leaves_the_connection_to_the_next() -> None:
    free: list[Connection] = []
    async with instance(says(OK)) as asking:
        connection = Connection(free.append, lambda _: None)
        await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", asking.port)
        request = InstanceRequest("GET", "/", [], None, "host")
        gives_up = asyncio.create_task(connection.ask(request))
        while not free:
            await asyncio.sleep(0)
        gives_up.cancel()
        answer = await asyncio.wait_for(connection.ask(request), PATIENCE_S)
        assert b"".join([piece async for piece in answer.pieces()]) == b"ok"
        assert asking.instance.connections == 1
        connection.close()


async def test_an_answer_that_is_closed_before_its_end_is_a_departure() -> None:
    async with instance(says(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")) as asking:
        answer = await asking.head()
        answer.close()
        await asyncio.wait_for(asking.instance.departed.wait(), PATIENCE_S)


async def body_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_bodies_go_out_with_the_length_that_is_known_or_in_chunks() -> None:
    received: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = asking.instance.heads[-1]
        received.append(await reader.readexactly(3) if b"content-length: 3" in head else await reader.readuntil(b"0\r\n\r\n"))
        writer.write(OK)

    async with instance(script) as asking:
        await asking.whole("POST", b"abc")
        await asking.whole("POST", body_of(b"ab", b"", b"c"))
        answer = await asking.head("POST", body_of(b"a", b"bc"), [(b"content-length", b"3"), (b"host", b"told")])
        answer.close()
        assert received == [b"abc", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"]
        first, second, third = asking.instance.heads
    assert first == b"POST /x?y=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-length: 3\r\n\r\n" % asking.port
    assert second.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert third.count(b"host: ") == 1 and b"transfer-encoding" not in third


async def test_an_answer_before_the_body_is_whole_ends_the_body_and_the_connection() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with instance(says(OK)) as asking:
        assert await asking.whole("POST", endless()) == (200, b"ok")
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        assert await asking.whole() == (200, b"ok")
        assert asking.instance.connections == 2


async def test_a_body_whose_source_fails_breaks_off_and_is_never_taken_for_whole() -> None:
    received = bytearray()

    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("gone")

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            received.extend(piece)

    async with instance(script) as asking:
        with pytest.raises(ConnectionBroken, match="the body ended early"):
            await asking.head("POST", failing())
        await until(lambda: asking.instance.departed.is_set())
    assert b"0\r\n\r\n" not in received


async def test_an_answer_that_nobody_reads_waits_at_the_instance() -> None:
    size, sent = 64 * 2**20, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    async with instance(script) as asking:
        answer, before = await asking.head(), -1
        while sent > before:  # until it comes to a halt
            before = sent
            await asyncio.sleep(0.2)
        assert sent < size / 2
        assert sum([len(piece) async for piece in answer.pieces()]) == size
        assert asking.instance.connections == 1


async def test_a_body_that_the_instance_does_not_read_waits_at_its_source() -> None:
    given, go_on = 0, asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 64 * 2**20:
            given += 65536
            yield b"x" * 65536

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await reader.readexactly(64 * 2**20)
        writer.write(OK)

    async with instance(script) as asking:
        answer = asyncio.create_task(asking.head("POST", source(), [(b"content-length", b"%d" % (64 * 2**20))]))
        before = -1
        while given > before:
            before = given
            await asyncio.sleep(0.2)
        assert given < 32 * 2**20
        go_on.set()
        assert (await answer).status == 200


async def test_what_nobody_asked_for_is_never_the_answer_to_the_next_request() -> None:
    numbers = iter(range(100))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = b"%d" % next(numbers)
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"
        writer.write(answer + said + answer + b"!")

    async with instance(script) as asking:
        for number in range(5):
            assert await asking.whole() == (200, b"%d" % number)
        assert asking.instance.connections == 5


async def test_connections_that_nobody_needs_are_closed_and_the_last_used_is_taken_first() -> None:
    gate = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(OK)

    async with instance(script, idle_s=0.2) as asking:
        both = [asyncio.create_task(asking.whole()) for _ in range(2)]
        await until(lambda: len(asking.instance.heads) == 2)
        gate.set()
        assert await asyncio.gather(*both) == [(200, b"ok")] * 2
        ends = asyncio.get_running_loop().time() + PATIENCE_S
        while not asking.instance.departed.is_set():
            assert asyncio.get_running_loop().time() < ends
            assert await asking.whole() == (200, b"ok")
            await asyncio.sleep(0.01)
        assert asking.instance.connections == 2, "one of the two was never needed again"


async def test_a_connection_that_was_idle_too_long_during_a_pause_is_not_used_again() -> None:
    async with instance(says(OK), idle_s=0.3) as asking:
        assert await asking.whole() == (200, b"ok")
        time.sleep(0.4)  # noqa: ASYNC251
        assert await asking.whole() == (200, b"ok")
        assert asking.instance.connections == 2, "the instance may have closed the first one"


@pytest.mark.parametrize("value", [b"a\r\nx-b: c", b"a\nx-b: c", b"a\rb"])
def test_no_header_becomes_two(value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        InstanceRequest("GET", "/", [(b"x-a", value)], None, "host")
