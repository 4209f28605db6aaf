"""The models behind `agent.generate` and `agent.stream`: one of `MODELS`, or an async callable of the user.

`MODELS` is the registry, by the part of the model's name before the colon. To add a model: a class with `generate`, `stream`
and `close`, and one line there; with `complete` and `chunks` as well, the chat API passes through it whole. A message is text
or a list of chat messages; any other value is sent as its JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swiftclaw.models.base import ChatModel, Model, ModelError
from swiftclaw.models.echo import Echo
from swiftclaw.models.function import Function
from swiftclaw.models.openai import OpenAI

__all__ = ["MODELS", "ChatModel", "Echo", "Function", "Model", "ModelError", "OpenAI", "model_for"]

MODELS: dict[str, Callable[..., Model]] = {
    "echo": Echo,
    "openai": OpenAI,
}


def model_for(model: str | Callable[..., Any], *, base_url: str | None = None, api_key: str | None = None) -> Model:
    """The model with that name. Raises ValueError for an unknown name, TypeError for neither a name nor a callable."""
    if callable(model):
        return Function(model)
    if not isinstance(model, str):
        raise TypeError(f"model: {model!r} is neither a model's name nor an async callable")
    prefix, _, name = model.partition(":")
    if prefix not in MODELS:
        raise ValueError(f"model: {model!r} is not a model (allowed: echo, openai:<model>, or an async callable)")
    return MODELS[prefix](name, base_url=base_url, api_key=api_key)
