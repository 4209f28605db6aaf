"""The models behind `agent.generate` and `agent.stream`: one of `MODELS`, or an async callable of the user.

`MODELS` is the registry, by the part of the model's name before the colon. To add a model: a class with `generate`, `stream`
and `close`, and one line there. A message is text or a list of chat messages; any other value is sent as its JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import aiohttp

from cluster.transport.sse import EventParser
from deployments.request.openai import content_text, text_of

OPENAI_URL = "https://api.openai.com/v1"
_CONNECT_S = 10.0
_ERROR_LIMIT = 64 * 1024  # bytes of an error's body; the rest is not read
_PLAIN_ERROR_LIMIT = 300  # characters of an error that is not JSON


class ModelError(Exception):
    """The model did not answer. `message` says why; `status` is the server's HTTP status, None without a response."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message if status is None else f"{status}: {message}")
        self.message = message
        self.status = status


class Model(Protocol):
    """What an Agent needs of its model. `stream` yields text; `options` are the caller's, unchanged."""

    async def generate(self, message: object, **options: Any) -> str: ...
    def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]: ...
    async def close(self) -> None: ...


class Echo:
    """Replies with the message itself (the last of chat messages), and streams it word by word. Ignores options."""

    def __init__(self, name: str = "", **settings: Any) -> None:
        if name:
            raise ValueError(f"model: 'echo' has no variants; write 'echo', not 'echo:{name}'")

    async def generate(self, message: object, **options: Any) -> str:
        return content_text(_chat_messages(message)[-1].get("content"))

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        for word in re.findall(r"\s*\S+\s*|\s+", await self.generate(message)):
            yield word

    async def close(self) -> None:
        pass


class Function:
    """The user's async callable. It receives the message unchanged, and returns text or is an async generator of text."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def generate(self, message: object, **options: Any) -> str:
        async with aclosing(self.stream(message, **options)) as pieces:
            return "".join([piece async for piece in pieces])

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
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


class OpenAI:
    """A model on any server with the OpenAI chat API. `base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY.

    `timeout_s`: the longest silence while waiting for data. Options (temperature, max_tokens, …) are sent unchanged.
    Raises ModelError; its text never contains the key.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, api_key: str | None = None, timeout_s: float = 120.0
    ) -> None:
        if not model:
            raise ValueError("model: 'openai' needs a model's name: openai:<model>")
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=timeout_s)
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def generate(self, message: object, **options: Any) -> str:
        async with aclosing(self._post(message, {**options, "stream": False})) as chunks:
            answer = self._parsed(b"".join([chunk async for chunk in chunks]))
        content = _content(answer, "message")
        if content is None:
            raise ModelError(f"{self._model}: the response has no text")
        return content

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        finished = False
        async with (
            aclosing(self._post(message, {**options, "stream": True})) as chunks,
            aclosing(_events(chunks)) as events,
        ):
            async for event in events:
                if event == b"[DONE]":
                    return
                answer = self._parsed(event)
                if content := _content(answer, "delta"):
                    yield content
                finished = finished or bool(_first_choice(answer).get("finish_reason"))
        if not finished:  # some servers omit [DONE], none omits the reason
            raise ModelError(f"{self._model}: the stream ended before the reply was complete")

    async def close(self) -> None:
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    async def _post(self, message: object, options: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        url, key = self._url(), self._key()
        if key is None and url.startswith(OPENAI_URL):
            raise ModelError("no API key: set OPENAI_API_KEY, or pass api_key to the Agent")
        body = {"model": self._model, "messages": _chat_messages(message), **options}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            request = self._session().post(url, json=body, headers=headers, allow_redirects=False)
            async with request as response:
                if response.status != 200:
                    raise self._error(await _error_body(response), status=response.status)
                async for chunk in response.content.iter_any():
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise ModelError(f"{self._model}: {error or type(error).__name__}") from error

    def _parsed(self, data: bytes) -> dict[str, Any]:
        """The JSON object. An object with `error` is a failure, even in a stream or with status 200. Raises ModelError."""
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise ModelError(f"{self._model}: the response is not JSON") from error
        if not isinstance(answer, dict):
            raise ModelError(f"{self._model}: the response is not a JSON object")
        if answer.get("error"):
            raise self._error(answer)
        return answer

    def _error(self, body: object, status: int | None = None) -> ModelError:
        """The server's message, with the key masked if it repeats it."""
        text, key = _error_text(body), self._key()
        return ModelError(text.replace(key, "***") if key else text, status=status)

    def _url(self) -> str:
        base_url = self._base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        return base_url.rstrip("/") + "/chat/completions"

    def _key(self) -> str | None:
        return self._api_key or os.environ.get("OPENAI_API_KEY") or None

    def _session(self) -> aiohttp.ClientSession:
        """The session of this event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            for closed in [other for other in list(self._sessions) if other.is_closed()]:
                if session := self._sessions.pop(closed, None):  # another thread may have removed it
                    session.detach()  # without its event loop it cannot be closed properly
            self._sessions[loop] = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0),  # the gateway limits how many run at once
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[loop]


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


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event."""
    parser = EventParser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event.data
    for event in parser.end():
        yield event.data


def _chat_messages(message: object) -> list[dict[str, Any]]:
    if isinstance(message, list) and message and all(isinstance(m, dict) and "role" in m for m in message):
        return message
    return [{"role": "user", "content": text_of(message)}]


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _content(answer: dict[str, Any], part: str) -> str | None:
    message = _first_choice(answer).get(part)
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


async def _error_body(response: aiohttp.ClientResponse) -> object:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _ERROR_LIMIT:
            break
    try:
        return json.loads(body)
    except ValueError:
        text = body.decode(errors="replace").strip()
        return text[:_PLAIN_ERROR_LIMIT] or response.reason


def _error_text(body: object) -> str:
    """Servers use {"error": {"message": …}}, {"error": …}, {"message": …} and {"detail": …}."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return text_of(body) or "no reason given"
