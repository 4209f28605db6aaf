"""A client's connection by itself: which turn a request has, what it is told, and what goes out on the wire."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.transport.http_protocol import ConnectionLimits
from deployments.proxy.client import Arrived, ClientSide
from deployments.proxy.client_connection import ClientConnection

HOST = b"host: a\r\n"
GET = b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /x HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Transport:
    def __init__(self) -> None:
        self.sent = bytearray()
        self.closing = self.reading_paused = False

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("203.0.113.1", 4711), "sockname": ("203.0.113.2", 80)}.get(name)

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False


class Request:
    """Notes what it is told. `answer` ends it."""

    idle_s = None

    def __init__(self, arrived: Arrived, client: ClientSide) -> None:
        self.arrived, self.client = arrived, client
        self.told: list[Any] = []
        self.ended = False

    def begin(self) -> None:
        self.told.append("begin")

    def body_piece(self, piece: bytes) -> None:
        self.told.append(piece)

    def body_end(self) -> None:
        self.told.append("end")

    def client_left(self) -> None:
        self.told.append("left")
        self.ended = True

    def client_paused(self) -> None:
        self.told.append("paused")

    def client_resumed(self) -> None:
        self.told.append("resumed")

    def answer(self, body: bytes = b"", *headers: tuple[bytes, bytes]) -> None:
        self.client.respond(200, headers)
        self.client.write(body)
        self.client.finish()
        self.ended = True
        self.client.done()


class Wire:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.rejected: list[int] = []
        self.transport = Transport()
        state = SimpleNamespace(connections=set(), default_headers=[(b"date", b"now")], total_requests=0)
        self.connection = ClientConnection(
            self.receive, ConnectionLimits(), self.rejected.append, config=None, server_state=state, app_state={}
        )
        self.connection.connection_made(self.transport)

    def receive(self, arrived: Arrived, client: ClientSide) -> Request:
        self.requests.append(Request(arrived, client))
        return self.requests[-1]

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)

    def sent(self) -> bytes:
        sent, self.transport.sent = bytes(self.transport.sent), bytearray()
        return sent


@pytest.fixture
async def wire() -> Wire:
    return Wire()


async def test_a_request_is_told_of_its_body_and_its_end(wire: Wire) -> None:
    wire.feed(CHUNKED[:60])
    wire.feed(CHUNKED[60:])
    (request,) = wire.requests
    assert request.told == ["begin", b"hello", "end"]
    assert (request.arrived.method, request.arrived.path, request.arrived.client) == ("POST", b"/x", ("203.0.113.1", 4711))


async def test_a_body_without_a_length_goes_out_in_chunks_and_one_with_a_length_as_it_is(wire: Wire) -> None:
    wire.feed(GET * 2)
    wire.requests[0].answer(b"hello")
    assert wire.sent() == b"HTTP/1.1 200 OK\r\ndate: now\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    wire.requests[1].answer(b"hello", (b"content-length", b"5"))
    assert wire.sent() == b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\nhello"
    assert not wire.transport.closing


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (b"GET /x HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\ndate: now\r\nconnection: close\r\n\r\nhello"),
        (b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
         b"HTTP/1.1 200 OK\r\ndate: now\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ],
)  # fmt: skip
async def test_a_connection_that_ends_after_its_response(wire: Wire, head: bytes, sent: bytes) -> None:
    wire.feed(head + GET)
    wire.requests[0].answer(b"hello")
    assert wire.sent() == sent and wire.transport.closing
    assert [request.told for request in wire.requests[1:]] in ([], [[]]), "the second one gets no turn"


async def test_the_response_to_head_has_no_body(wire: Wire) -> None:
    wire.feed(GET.replace(b"GET", b"HEAD"))
    wire.requests[0].answer(b"hello", (b"content-length", b"5"))
    assert wire.sent() == b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\n"


async def test_requests_behind_another_wait_for_their_turn_with_their_bodies(wire: Wire) -> None:
    wire.feed(GET + CHUNKED)
    first, second = wire.requests
    assert (first.told, second.told) == (["begin", "end"], []) and wire.transport.reading_paused
    first.answer()
    assert second.told == ["begin", b"hello", "end"] and not wire.transport.reading_paused


async def test_a_client_that_does_not_read_gets_no_next_turn(wire: Wire) -> None:
    wire.feed(GET)
    wire.connection.pause_writing()
    wire.requests[0].answer()
    wire.feed(GET)
    assert wire.requests[0].told == ["begin", "end", "paused"]
    assert wire.requests[1].told == [] and wire.transport.reading_paused
    wire.connection.resume_writing()
    assert wire.requests[1].told == ["begin", "end"] and not wire.transport.reading_paused


async def test_a_handshake_behind_another_request_does_not_end_its_body_twice(wire: Wire) -> None:
    wire.feed(CHUNKED + HANDSHAKE)
    (request,) = wire.requests
    assert request.told == ["begin", b"hello", "end"] and wire.rejected == [400]
    request.answer()
    assert wire.transport.closing


async def test_a_request_whose_client_leaves_is_told_once_and_nothing_after_it(wire: Wire) -> None:
    wire.feed(GET + GET)
    wire.connection.connection_lost(None)
    wire.connection.data_received(GET)
    assert [request.told for request in wire.requests] == [["begin", "end", "left"], []]


async def test_a_rejected_head_is_answered_after_the_requests_before_it(wire: Wire) -> None:
    wire.feed(GET + b"GET / HTTP/1.1\r\n\r\n")
    assert wire.sent() == b"" and wire.rejected == [400]
    wire.requests[0].answer()
    assert wire.sent().startswith(b"HTTP/1.1 200") and wire.transport.closing


async def test_a_rejected_head_does_not_overtake_requests_that_wait_for_a_client_to_read(wire: Wire) -> None:
    wire.connection.pause_writing()
    wire.feed(GET + b"GET / HTTP/1.1\r\n\r\n")
    assert wire.sent() == b"" and not wire.transport.closing
    wire.connection.resume_writing()
    wire.requests[0].answer()
    assert wire.sent().startswith(b"HTTP/1.1 200") and wire.transport.closing


async def test_a_server_that_stops_closes_an_idle_connection_and_lets_the_newest_request_finish(wire: Wire) -> None:
    wire.feed(GET + GET)
    wire.connection.shutdown()
    wire.requests[0].answer()
    assert not wire.transport.closing
    wire.requests[1].answer()
    assert wire.transport.closing and b"connection: close" in wire.sent()
    idle = Wire()
    idle.connection.shutdown()
    assert idle.transport.closing


async def test_as_many_answers_as_may_wait_are_given_at_once(wire: Wire) -> None:
    """By requests that end as soon as they begin: one turn calls the next."""
    wire.feed(GET)

    class AtOnce(Request):
        def begin(self) -> None:
            self.answer()

    def receive(arrived: Arrived, client: ClientSide) -> Request:
        wire.requests.append(AtOnce(arrived, client))
        return wire.requests[-1]

    wire.connection._receive = receive
    wire.feed(GET * 64)
    wire.requests[0].answer()
    assert wire.sent().count(b"HTTP/1.1 200") == 65 and not wire.rejected
