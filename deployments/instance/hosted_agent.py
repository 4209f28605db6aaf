"""The interface that an instance process needs of the user's agent, and how it is imported.

This package does not import `swiftclaw` (imports point the other way); any object with this interface can be hosted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from deployments.request.openai import chat_messages
from policies.rate_limit import RateRule

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]


class Cancellation:
    """Whether a request was cancelled: its client has left, or it ran out of time. Cheap to ask, from any thread."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def __repr__(self) -> str:
        return f"<Cancellation: {'cancelled' if self._is_set else 'not cancelled'}>"

    def __bool__(self) -> bool:
        return self._is_set

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True


@dataclass(frozen=True)
class RequestInfo:
    """The request as a handler sees it. `body`: the JSON object that was sent.

    `messages`: the whole conversation of the chat API; of a message, that message as a conversation.
    `session_moved`: the session has lived at another instance until now, so that this one may not know it. `cancelled`: true
    once nobody waits for the reply any more; a handler in a thread asks it between its steps: nothing can interrupt it.
    """

    headers: Mapping[str, str]
    body: Mapping[str, object]
    instance: str
    region: str
    version: str
    messages: Sequence[Mapping[str, Any]] = ()
    session_moved: bool = False
    cancelled: Cancellation = field(default_factory=Cancellation, compare=False)


@dataclass(frozen=True)
class Turn:
    """One message to the agent, with what its handler may ask for.

    `stream`: the client wants the reply as it arrives. `options`: what a chat request asks of the model besides the messages
    (temperature, tools, …); None when it is not a chat request.
    """

    message: object
    session_id: str | None
    user_id: str | None
    request: RequestInfo | None = None
    stream: bool = False
    options: Mapping[str, Any] | None = None

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        return self.request.messages if self.request and self.request.messages else chat_messages(self.message)


@runtime_checkable
class HostedAgent(Protocol):
    """`app`: the mounted ASGI app. `answer` gets a `Turn`; `check` returns whether the agent is healthy, and why not."""

    name: str
    session_affinity: bool
    app: AsgiApp | None

    @property
    def rate_limits(self) -> Sequence[RateRule]: ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def answer(self, turn: Any) -> object | AsyncIterator[Any]: ...
    async def check(self) -> tuple[bool, str]: ...


class NotAnAgent(Exception):
    """The target of `agent:` cannot be hosted. The text is the reason, for the operator."""


def load_agent(target: str, folder: str) -> HostedAgent:
    """Import `module:attribute`, with `folder` first on the import path. Raises NotAnAgent."""
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    module_name, _, attribute = target.partition(":")
    try:
        target_object: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target_object = getattr(target_object, part)
    except (Exception, SystemExit) as error:  # a module may parse the command line
        raise NotAnAgent(f"{target} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(target_object, HostedAgent):
        raise NotAnAgent(f"{target} is a {type(target_object).__name__}, not a swiftclaw.Agent")
    return target_object
