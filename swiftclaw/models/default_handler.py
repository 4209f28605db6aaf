"""The reply of an agent without a handler: its model's.

On the chat API a model server's completions and chunks reach the client as they are, and the server gets the whole request. A
model without that API, and a plain message, give text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from deployments.instance.hosted_agent import Turn
from deployments.request import openai
from deployments.request.openai import Completion, CompletionStream
from swiftclaw.models.base import ChatModel, Messages, Model
from swiftclaw.models.function import Function

NOT_GIVEN: Any = object()


def question(message: object, messages: Messages | None) -> object:
    """What a model is asked. Raises TypeError unless exactly one is given."""
    if (message is NOT_GIVEN) == (messages is None):
        raise TypeError("pass either a message or messages=[…]")
    return message if messages is None else list(messages)


async def answer(model: Model, turn: Turn) -> object:
    """Text, an async generator of text, Completion or CompletionStream."""
    if isinstance(model, ChatModel):
        if turn.options is not None and turn.stream:
            return CompletionStream(model.chunks(turn.messages, **turn.options))
        if not turn.stream:
            return Completion(await model.complete(turn.messages, **(turn.options or {})))
        return model.stream(turn.message)
    options: Mapping[str, Any] = turn.options or {}
    openai.check_one_answer(options)
    accepted = model.accepted(options) if isinstance(model, Function) else options
    message = turn.message if turn.options is None else _conversation(turn.messages)
    return model.stream(message, **accepted) if turn.stream else await model.generate(message, **accepted)


async def complete(model: Model, message: object, options: Mapping[str, Any]) -> Completion:
    """The model's completion; of a model that only gives text, one with that text."""
    messages = openai.chat_messages(message)
    if isinstance(model, ChatModel):
        return Completion(await model.complete(messages, **options))
    text = await model.generate(message, **options)
    made = openai.completion(text, id=f"chatcmpl-{token_hex(16)}", created=int(time.time()), model="", messages=messages)
    return Completion(made)


def _conversation(messages: Messages) -> object:
    """One text of a user is that text, so that a function need not know the chat API; all else is the list."""
    first = messages[0]
    alone = len(messages) == 1 and first.get("role") == "user" and isinstance(first.get("content"), str)
    return first["content"] if alone else messages
