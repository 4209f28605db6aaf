"""`model=` an async callable: the user's own code is the model."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from deployments.request.openai import chat_messages


class Function:
    """The user's async callable. It returns text or is an async generator of text.

    It receives the message unchanged: text, or a list of chat messages. A parameter named `messages` gets the list in any case.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._takes_messages, self._options = _parameters(function)

    def accepted(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a client's options that the callable has a parameter for."""
        return {name: value for name, value in options.items() if self._options is None or name in self._options}

    async def generate(self, message: object, **options: Any) -> str:
        async with aclosing(self.stream(message, **options)) as pieces:
            return "".join([piece async for piece in pieces])

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        if self._takes_messages:
            answer = self._function(messages=chat_messages(message), **options)
        else:
            answer = self._function(message, **options)
        if hasattr(answer, "__await__"):
            answer = await answer
        if isinstance(answer, str):
            yield answer
            return
        if not hasattr(answer, "__aiter__"):
            kind = type(answer).__name__
            raise TypeError(f"a model must be async and return str, or be an async generator of str; it returned {kind}")
        try:
            async for piece in answer:
                yield piece
        finally:
            if hasattr(answer, "aclose"):
                await answer.aclose()

    async def close(self) -> None:
        pass


def _parameters(function: Callable[..., Any]) -> tuple[bool, frozenset[str] | None]:
    """Whether there is a parameter `messages`, and the names of the options (None: any)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some callables have no signature
        return False, frozenset()
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_messages = "messages" in by_name
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return takes_messages, None
    message = "messages" if takes_messages else next((p.name for p in parameters), "")
    return takes_messages, frozenset(by_name - {message})
