"""What a handler may return or yield: the same value on every route, and one clear error for all else."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import numpy
import pydantic
import pytest
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from deployments.instance.reply_values import NotSendable, TextPieces, encode, text_of
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, until


class Order(pydantic.BaseModel):
    order_id: int = pydantic.Field(alias="orderId")
    at: datetime
    total: Decimal = Decimal("1.10")


@dataclasses.dataclass
class Point:
    x: float
    tags: set[str] = dataclasses.field(default_factory=lambda: {"a"})


class Pair(NamedTuple):
    one: int
    other: str


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


AT = datetime(2025, 1, 2, 3, 4, tzinfo=timezone.utc)
ID = UUID("12345678123456781234567812345678")
ORDER = Order(orderId=1, at=AT)
CASES: list[tuple[Any, Any]] = [
    ("text", "text"),
    (None, None),
    (b"bytes \xc3\xbc", "bytes ü"),
    (bytearray(b"b"), "b"),
    (float("nan"), None),
    ({"score": float("-inf"), "n": [float("inf"), 1.5]}, {"score": None, "n": [None, 1.5]}),
    (ORDER, {"orderId": 1, "at": "2025-01-02T03:04:00Z", "total": "1.10"}),
    ({"orders": [ORDER]}, {"orders": [{"orderId": 1, "at": "2025-01-02T03:04:00Z", "total": "1.10"}]}),
    (pydantic.RootModel[list[int]]([1, 2]), [1, 2]),
    (Point(float("nan")), {"x": None, "tags": ["a"]}),
    (Pair(1, "x"), [1, "x"]),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    ({Colour.RED: {ID: 1}, AT.date(): 2, 3: 4}, {"red": {str(ID): 1}, "2025-01-02": 2, "3": 4}),
    ([AT, date(2025, 1, 2), timedelta(seconds=90)], ["2025-01-02T03:04:00+00:00", "2025-01-02", 90.0]),
    ([ID, PurePosixPath("/a"), ip_address("::1")], [str(ID), "/a", "::1"]),
    ([Decimal("1.10"), Decimal("7"), Decimal("NaN")], [1.1, 7, None]),
    ([{1}, frozenset({2}), deque([3]), OrderedDict(a=1).keys()], [[1], [2], [3], ["a"]]),
    (pydantic.SecretStr("hidden"), "**********"),
    ([numpy.float32(0.5), numpy.array([[1, 2]]), numpy.int64(3)], [0.5, [[1, 2]], 3]),
    ("half \ud83d of a pair", "half \ufffd of a pair"),
    ({"\ud83d": ["\ude00", "\U0001f600"]}, {"\ufffd": ["\ufffd", "\U0001f600"]}),
]


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


class Connection:
    pass


REFUSED: list[tuple[Any, str]] = [
    (object(), "object"),
    (Connection(), "test_reply_values.Connection"),
    (Connection, "test_reply_values.Connection"),
    ({"a": [lambda: 1]}, "function"),
    (1j, "complex"),
    (b"\xff", "bytes"),
    ({(1, 2): 3}, "tuple"),
    (circular(), "list"),
    (deep(), "list"),
    (ValueError("x"), "ValueError"),
]


@pytest.mark.parametrize(("value", "expected"), CASES, ids=lambda value: ascii(value)[:40])
def test_a_value_is_encoded_as_fastapi_does(value: Any, expected: Any) -> None:
    assert json.loads(encode(value).encode(), parse_constant=pytest.fail) == expected
    text = text_of(value)
    text.encode()
    assert text == ("" if expected is None and value is None else expected) or json.loads(text) == expected


@pytest.mark.parametrize(("value", "kind"), REFUSED, ids=[kind for _, kind in REFUSED])
def test_anything_else_is_one_error_that_names_the_type(value: Any, kind: str) -> None:
    for convert in (encode, text_of, TextPieces().text) if value != b"\xff" else (encode, text_of):
        with pytest.raises(NotSendable, match=rf"the handler's reply \(.*{re.escape(kind)}\) cannot be sent: ") as raised:
            convert(value)
        assert raised.value.status == 500


def test_a_character_split_over_two_pieces_of_bytes_is_one_character() -> None:
    pieces = TextPieces()
    assert [pieces.text(piece) for piece in (b"a\xc3", b"\xbc", "ü", {"a": 1})] == ["a", "ü", "ü", '{"a": 1}']


def returning(value: Any) -> Agent:
    agent = Agent("values")

    @agent.on_message
    async def handle(message: str) -> Any:
        return value

    return agent


def yielding(values: list[Any]) -> Agent:
    agent = Agent("values")

    @agent.on_message
    def handle(message: str) -> Iterator[Any]:
        yield from values

    return agent


async def chat(plane: DataPlane, stream: bool = False) -> tuple[int, str]:
    body = {"model": "values", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    async with plane.client.post("/v1/chat/completions", json=body) as response:
        return response.status, await response.text()


def content_of(events: str) -> str:
    chunks = [json.loads(line[6:]) for line in events.split("\n\n") if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.parametrize(("value", "expected"), CASES, ids=lambda value: ascii(value)[:40])
async def test_a_value_is_the_same_on_every_route(plane: DataPlane, value: Any, expected: Any) -> None:
    await plane.add(returning(value))
    status, answer, _ = await post(plane, "values", {"message": "x"})
    assert (status, answer["reply"]) == (200, expected)
    whole = json.loads((await chat(plane))[1])["choices"][0]["message"]["content"]
    status, events = await chat(plane, stream=True)
    assert status == 200 and "[DONE]" in events and content_of(events) == whole == text_of(value)


@pytest.mark.parametrize(("value", "kind"), REFUSED[:5], ids=[kind for _, kind in REFUSED[:5]])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_sent_is_an_agent_error_on_every_route(
    plane: DataPlane, value: Any, kind: str, stream: bool
) -> None:
    await plane.add(returning(value))
    status, answer, _ = await post(plane, "values", {"message": "x", "stream": stream})
    assert (status, answer["error"]["type"]) == (500, "agent_error") and kind in answer["error"]["message"]
    status, text = await chat(plane, stream)
    assert (status, json.loads(text)["error"]["type"]) == (500, "agent_error") and kind in text


async def test_a_stream_of_any_values_is_text_and_ends_with_done(plane: DataPlane) -> None:
    await plane.add(yielding(["half \ud83d", b"\xc3", b"\xbc", float("nan"), ORDER, None, "\u2028\n"]))
    status, events = await chat(plane, stream=True)
    assert status == 200 and events.endswith("data: [DONE]\n\n")
    assert content_of(events) == f"half \ufffdünull{ORDER.model_dump_json(by_alias=True)}\u2028\n".replace(":", ": ").replace(
        ",", ", "
    ).replace("03: 04: 00", "03:04:00")


async def test_a_stream_that_yields_what_cannot_be_sent_ends_with_that_error(plane: DataPlane) -> None:
    await plane.add(yielding(["one", object()]))
    _, events = await chat(plane, stream=True)
    assert "event: error" in events and "agent_error" in events and "object" in events and "[DONE]" not in events


@pytest.mark.parametrize("path", ["messages", "chat"])
async def test_a_starlette_response_is_sent_as_it_is(plane: DataPlane, path: str) -> None:
    done: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    cases = [
        (JSONResponse({"a": 1}, 418, headers={"x-own": "yes"}), 418, '{"a":1}'),
        (PlainTextResponse("hi", background=BackgroundTask(done.append, "done")), 200, "hi"),
        (Response(b"\x00", media_type="application/octet-stream"), 200, "\x00"),
        (StreamingResponse(pieces()), 200, "one two"),
    ]
    agent = Agent("values")

    @agent.on_message
    async def handle(message: str) -> Response:
        return cases[int(message)][0]

    await plane.add(agent)
    for number, (_, status, text) in enumerate(cases):
        body: dict[str, Any] = {"message": str(number)}
        if path == "chat":
            body = {"model": "values", "messages": [{"role": "user", "content": str(number)}]}
        to = "/v1/chat/completions" if path == "chat" else "/agents/values/messages"
        async with plane.client.post(to, json=body) as response:
            assert (response.status, await response.text()) == (status, text)
            assert response.headers.get("x-own") == ("yes" if number == 0 else None)
            assert response.headers["x-swiftclaw-instance"] == "instance-1"
    await until(lambda: done == ["done"] and plane.active() == 0)
