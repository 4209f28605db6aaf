"""The annotations of a handler's parameters hold: what a client sends in another type is its mistake."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from deployments.request.openai import BadField
from swiftclaw import Agent
from swiftclaw.agent import Turn

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Question(BaseModel):
    text: str
    temperature: float = 0.5


@dataclass
class Place:
    city: str


class Handlers:
    async def method(self, message: str) -> object:
        return message

    async def __call__(self, message: int) -> object:
        return message


async def text(message: str) -> object:
    return message


async def optional(message: str | None) -> object:
    return message


async def whole(message: int) -> object:
    return message


async def short(message: Annotated[str, Field(max_length=3)]) -> object:
    return message


async def question(message: Question) -> object:
    return type(message).__name__, message.text, message.temperature


async def place(message: Place) -> object:
    return message


async def texts(message: list[str], /) -> object:
    return message


async def anything(message: Any) -> object:
    return message


async def untyped(message):
    return message


async def unknown(message: Unknown) -> object:
    return message


class Foreign:
    pass


async def foreign(message: Foreign) -> object:
    return message


async def person(message: str, user_id: int, session_id: UUID | None = None) -> object:
    return user_id, session_id


def turn(message: object, user_id: str | None = None, session_id: str | None = None) -> Turn:
    return Turn(message, session_id, user_id)


async def answer(handler: Any, message: object, **more: Any) -> object:
    agent = Agent("a")
    agent.on_message(handler)
    return await agent.answer(turn(message, **more))


@pytest.mark.parametrize(
    ("handler", "given", "received"),
    [
        (text, "hi", "hi"),
        (optional, None, None),
        (whole, 5, 5),
        (whole, "5", 5),  # as FastAPI reads it
        (short, "abc", "abc"),
        (question, {"text": "why"}, ("Question", "why", 0.5)),
        (place, {"city": "Oslo"}, Place("Oslo")),
        (texts, ["a"], ["a"]),
        (anything, {"a": 1}, {"a": 1}),
        (untyped, {"a": 1}, {"a": 1}),
        (unknown, 7, 7),
        (foreign, 7, 7),
        (Handlers().method, "hi", "hi"),
        (Handlers(), 5, 5),
        (partial(whole), "5", 5),
    ],
)
async def test_a_value_of_the_type_is_received(handler: Any, given: object, received: object) -> None:
    assert await answer(handler, given) == received


@pytest.mark.parametrize(
    ("handler", "given", "sentence"),
    [
        (text, 5, "message: must be a string"),
        (text, {"a": 1}, "message: must be a string"),
        (text, None, "message: must be a string"),
        (optional, 5, "message: Input should be a valid string"),
        (whole, "five", "message: Input should be a valid integer"),
        (short, "abcd", "message: String should have at most 3 characters"),
        (question, {"text": 5, "temperature": "hot"}, "message: text: Input should be a valid string; temperature: Input"),
        (question, "why", "message: Input should be a valid dictionary"),
        (texts, ["a", 5], "message: 1: Input should be a valid string"),
        (Handlers().method, 5, "message: must be a string"),
        (Handlers(), "x", "message: Input should be a valid integer"),
        (partial(whole), "x", "message: Input should be a valid integer"),
    ],
)
async def test_another_type_is_refused_before_the_handler_runs(handler: Any, given: object, sentence: str) -> None:
    with pytest.raises(BadField) as refused:
        await answer(handler, given)
    assert refused.value.message.startswith(sentence)
    assert refused.value.param == "message"


async def test_a_client_need_not_say_who_it_is() -> None:
    assert await answer(person, "hi") == (None, None)
    assert await answer(person, "hi", user_id="7") == (7, None)
    with pytest.raises(BadField, match=r"user_id: Input should be a valid integer"):
        await answer(person, "hi", user_id="ada")
    with pytest.raises(BadField, match=r"session_id: Input should be a valid UUID"):
        await answer(person, "hi", session_id="s1")
