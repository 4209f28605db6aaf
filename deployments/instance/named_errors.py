"""Which exceptions of the agent's code name the error that the client gets? All others are `agent_error`.

An HTTPException of Starlette or FastAPI has the status and the words that its raiser chose. A model server's refusal of one
request must not count against the instance, whichever client called the server: the agent's own model, or a client package.

Agents raise more than `Exception`: SystemExit (argparse in a tool), a BaseExceptionGroup, or the CancelledError of a task of
their own (cancel scopes of anyio and MCP). Those are errors like others. A cancellation from outside, and the closing of the
coroutine, are not the agent's (`ends_task`) and must go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol, runtime_checkable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from deployments.instance import reply_values
from deployments.request.responses import parse_retry_after
from policies.errors import AgentRefused, ModelFailed, ModelRefused, ModelTimeout, SwiftClawError

_OF_THE_BODY = frozenset((b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"))


@runtime_checkable
class NamesItsError(Protocol):
    """An exception that names its error, as swiftclaw.models.ModelError does."""

    def named_error(self) -> SwiftClawError: ...


def named_error(error: BaseException) -> SwiftClawError | None:
    """The error for the client, or None for one of the agent's own. Of a group: when every member has one, the gravest."""
    if isinstance(error, SwiftClawError):
        return error
    if isinstance(error, NamesItsError):
        return error.named_error()
    if isinstance(error, HTTPException):
        return _of_http_exception(error)
    members = getattr(error, "exceptions", ())  # ExceptionGroup: Python 3.11
    if isinstance(members, (list, tuple)) and members:
        named = [named for member in members if (named := named_error(member)) is not None]
        return max(named, key=lambda member: member.status) if len(named) == len(members) else None
    return _of_client_package(error)


def only_disconnects(error: BaseException) -> bool:
    """Whether the error says no more than that the client has left; of a group: whether every member does."""
    members = getattr(error, "exceptions", ())  # ExceptionGroup: Python 3.11
    if isinstance(members, (list, tuple)) and members:
        return all(only_disconnects(member) for member in members)
    return isinstance(error, (WebSocketDisconnect, ClientDisconnect, ClientDisconnected))


def _of_http_exception(error: HTTPException) -> SwiftClawError | None:
    """Of Starlette and FastAPI: the response that it would make there, in the form of our errors."""
    if not 200 <= error.status_code < 600:
        return None
    own = {name.lower().encode("latin-1", "replace"): value for name, value in (error.headers or {}).items()}
    headers = [(name, value.encode("latin-1", "replace")) for name, value in own.items() if name not in _OF_THE_BODY]
    if isinstance(error.detail, str):
        return AgentRefused(error.detail, refused_with=error.status_code, headers=headers)
    try:
        detail = reply_values.plain(error.detail)
    except reply_values.NotSendable as not_sendable:
        return not_sendable
    return AgentRefused(_phrase(error.status_code), refused_with=error.status_code, detail=detail, headers=headers)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status {status}"


def _of_client_package(error: Any) -> SwiftClawError | None:
    """Of `openai`, `anthropic` and the packages generated like them, by the names of their classes: none is imported here.

    The server's words stay in the log, because they may hold a key that is unknown here.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "APITimeoutError" in names:
        return ModelTimeout("the agent's model did not answer in time")
    if "APIConnectionError" in names:
        return ModelFailed("the agent's model cannot be reached")
    status = getattr(error, "status_code", None)
    if "APIStatusError" not in names or not isinstance(status, int):
        return None
    retry_after_s = parse_retry_after(getattr(getattr(error, "response", None), "headers", {}))
    if not 400 <= status < 500:
        return ModelFailed(f"the agent's model failed with status {status}", retry_after_s=retry_after_s)
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    fields = inner if isinstance(inner, Mapping) else None
    message = f"the agent's model refused the request with status {status}"
    return ModelRefused(message, refused_with=status, fields=fields, retry_after_s=retry_after_s)


def is_cancelled(task: asyncio.Task[Any] | None) -> bool:
    """Whether the task itself was cancelled; before Python 3.11 that is unknown, and True."""
    cancelling = getattr(task, "cancelling", None)
    return True if cancelling is None else cancelling() > 0


def ends_task(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether `error`, which was raised in `task`, ends it."""
    if isinstance(error, asyncio.CancelledError):
        return is_cancelled(task)
    return isinstance(error, GeneratorExit) and current_task() is not task


def current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs: the coroutine is being closed
        return None
