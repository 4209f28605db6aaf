"""What an Agent needs of a model, and the error of a model that did not answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from policies.errors import ModelFailed, ModelRefused, ModelTimeout, SwiftClawError

Messages = Sequence[Mapping[str, Any]]

_PROXY_AUTHENTICATION = 407  # from the operator's own proxy: the client can do nothing about it


class ModelError(Exception):
    """The model did not answer. `message` says why; `status` is the server's HTTP status, None without a response.

    `public` is what a client may read: no address, no key. `fields` are `type`, `code` and `param` of the server's own error.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        public: str | None = None,
        fields: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message if status is None else f"{status}: {message}")
        self.message = message
        self.status = status
        self.public = public or message
        self.fields = fields
        self.retry_after_s = retry_after_s
        self.timed_out = timed_out

    @property
    def is_refusal(self) -> bool:
        """The server refused this request (4xx) and is itself well."""
        return self.status is not None and 400 <= self.status < 500 and self.status != _PROXY_AUTHENTICATION

    def named_error(self) -> SwiftClawError:
        """The error that the client gets when the agent's code does not handle this one."""
        if self.is_refusal and self.status is not None:
            return ModelRefused(self.public, refused_with=self.status, fields=self.fields, retry_after_s=self.retry_after_s)
        kind = ModelTimeout if self.timed_out or self.status == 504 else ModelFailed
        return kind(self.public, retry_after_s=self.retry_after_s)


class Model(Protocol):
    """What an Agent needs of its model. `stream` yields text; `options` are the caller's, unchanged."""

    async def generate(self, message: object, **options: Any) -> str: ...
    def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]: ...
    async def close(self) -> None: ...


@runtime_checkable
class ChatModel(Protocol):
    """A model that speaks the chat API itself: its completions and chunks reach the client as they are."""

    async def complete(self, messages: Messages, **options: Any) -> dict[str, Any]: ...
    def chunks(self, messages: Messages, **options: Any) -> AsyncGenerator[dict[str, Any], None]: ...
