"""A body on its way: whole where it is small, and held back while nobody can take it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from deployments.proxy.client import ClientSide
from deployments.proxy.request_body import IncomingBody
from deployments.request.record import READ_AHEAD
from deployments.upstream.connection import Connection
from policies.errors import PayloadTooLarge

LARGE = b"x" * (READ_AHEAD + 1)


class Client:
    def __init__(self) -> None:
        self.told: list[str] = []

    def want_body(self) -> None:
        self.told.append("want")

    def pause_body(self) -> None:
        self.told.append("pause")

    def resume_body(self) -> None:
        self.told.append("resume")


class Instance:
    def __init__(self) -> None:
        self.got: list[Any] = []
        self.writable = True

    def send_piece(self, piece: bytes) -> None:
        self.got.append(piece)

    def end_body(self) -> None:
        self.got.append("end")


def incoming(most: int = 10**6) -> tuple[IncomingBody, Client, list[bytes]]:
    client = Client()
    return IncomingBody(cast(ClientSide, client), most), client, []


def test_a_small_body_is_whole_once_it_has_ended() -> None:
    body, client, read = incoming()
    body.read(8, read.append)
    for piece in (b"half", b"half"):
        body.piece(piece)
        assert read == []
    body.end()
    assert (read, body.value, body.is_streamed, client.told) == ([b"halfhalf"], b"halfhalf", False, ["want"])


def test_a_request_without_a_body_goes_on_when_its_message_has_ended() -> None:
    body, _, read = incoming()
    body.read(0, read.append)
    assert read == []
    body.end()
    assert (read, body.value) == ([b""], None)


@pytest.mark.parametrize("length", [None, len(LARGE)])
def test_a_large_body_or_one_of_unknown_length_is_streamed_and_held_until_an_instance_takes_it(length: int | None) -> None:
    body, client, read = incoming()
    body.read(length, read.append)
    assert (read, body.is_streamed) == ([b""], True)
    body.piece(b"one")
    body.piece(b"two")
    assert client.told == ["want", "pause", "pause"]
    instance = Instance()
    body.send(cast(Connection, instance))
    assert instance.got == [b"one", b"two"] and client.told[-1] == "resume"
    instance.writable = False
    body.piece(b"three")
    assert client.told[-1] == "pause"
    body.end()
    assert instance.got == [b"one", b"two", b"three", "end"]


def test_the_beginning_of_a_stream_is_read_ahead() -> None:
    body, _, read = incoming()
    body.read(None, read.append, ahead=True)
    body.piece(LARGE[:-2])
    assert read == []
    body.piece(LARGE[-2:])
    assert (read, body.is_streamed) == ([LARGE], True)
    body.end()
    instance = Instance()
    body.send(cast(Connection, instance))
    assert instance.got == [LARGE, "end"]


def test_a_short_stream_that_is_read_ahead_is_whole() -> None:
    body, _, read = incoming()
    body.read(None, read.append, ahead=True)
    body.piece(b"short")
    body.end()
    assert (read, body.value) == ([b"short"], b"short")


def test_more_than_the_limit_is_an_error_whenever_it_arrives() -> None:
    body, _, read = incoming(most=4)
    body.read_whole(read.append)
    body.piece(b"four")
    with pytest.raises(PayloadTooLarge, match="more than the 4 bytes allowed"):
        body.piece(b"!")
    assert read == []
