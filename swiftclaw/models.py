"""What answers `agent.generate`: a model by its name, or an async callable of the user's.

`MODELS` is the registry, by the part of the name before the colon. To add one: a class with `generate`,
`stream` and `close`, and one line there. A message is text or a list of chat messages; anything else goes in
as its JSON.
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

from deployments.request.openai import content_text, text_of

OPENAI_URL = "https://api.openai.com/v1"
_CONNECT_S = 10.0
_ERROR_LIMIT = 64 * 1024  # of an error's body; the rest is not read
_PLAIN_ERROR_LIMIT = 300  # characters of an error that is not JSON


class ModelError(Exception):
    """The model did not answer. `status` is the server's, if it came that far."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message if status is None else f"{status}: {message}")
        self.message = message
        self.status = status


class Model(Protocol):
    async def generate(self, message: object, **options: Any) -> str: ...
    def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]: ...
    async def close(self) -> None: ...


class Echo:
    """Says what it was told (of chat messages: the last); streams word by word. Options change nothing."""

    def __init__(self, name: str = "", **settings: Any) -> None:
        if name:
            raise ValueError(f"model: 'echo' takes no name, and got {name!r}")

    async def generate(self, message: object, **options: Any) -> str:
        return content_text(_chat_messages(message)[-1].get("content"))

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        for word in re.findall(r"\s*\S+\s*|\s+", await self.generate(message)):
            yield word

    async def close(self) -> None:
        pass


class Function:
    """The user's async callable, given the message as it is: returns text, or is an async generator of it."""

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
            raise TypeError(f"a model is async and answers with text or an async generator of it, not {kind}")
        try:
            async for piece in answer:
                yield piece
        finally:
            if hasattr(answer, "aclose"):
                await answer.aclose()

    async def close(self) -> None:
        pass


class OpenAI:
    """A model of any server that speaks the OpenAI chat API. Key and address: given, or the environment's.

    Options (temperature, max_tokens, …) go into the request as they are. Raises ModelError, without the key.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, api_key: str | None = None, timeout_s: float = 120.0
    ) -> None:
        if not model:
            raise ValueError("model: 'openai' needs the model's name behind it, as in openai:<model>")
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
            raise ModelError("the answer holds no text")
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
        if not finished:  # some servers leave out [DONE], none the reason
            raise ModelError("the stream broke off")

    async def close(self) -> None:
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    async def _post(self, message: object, options: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        url, key = self._url(), self._key()
        if key is None and url.startswith(OPENAI_URL):
            raise ModelError("no key: set OPENAI_API_KEY, or give the Agent an api_key")
        body = {"model": self._model, "messages": _chat_messages(message), **options}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            request = self._session().post(url, json=body, headers=headers, allow_redirects=False)
            async with request as response:
                if response.status != 200:
                    raise self._refused(await _error_body(response), status=response.status)
                async for chunk in response.content.iter_any():
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise ModelError(f"{self._model}: {error or type(error).__name__}") from error

    def _parsed(self, data: bytes) -> dict[str, Any]:
        """One JSON object; within a stream, and in some servers' 200, one with `error` reports a failure."""
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise ModelError("the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise ModelError("the answer is not a JSON object")
        if answer.get("error"):
            raise self._refused(answer)
        return answer

    def _refused(self, body: object, status: int | None = None) -> ModelError:
        """The server's own words, without the key if it repeats it."""
        said, key = _error_text(body), self._key()
        return ModelError(said.replace(key, "***") if key else said, status=status)

    def _url(self) -> str:
        base_url = self._base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        return base_url.rstrip("/") + "/chat/completions"

    def _key(self) -> str | None:
        return self._api_key or os.environ.get("OPENAI_API_KEY") or None

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            for gone in [other for other in list(self._sessions) if other.is_closed()]:
                if session := self._sessions.pop(gone, None):  # another thread may be here too
                    session.detach()  # nothing is left that could close it properly
            self._sessions[loop] = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0),  # how many at once is the gateway's business
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[loop]


MODELS: dict[str, Callable[..., Model]] = {
    "echo": Echo,
    "openai": OpenAI,
}


def model_for(model: str | Callable[..., Any], *, base_url: str | None = None, api_key: str | None = None) -> Model:
    """The model of that name. Raises ValueError for an unknown one, TypeError for no name and no callable."""
    if callable(model):
        return Function(model)
    if not isinstance(model, str):
        raise TypeError(f"model: {model!r} is neither a model's name nor an async callable")
    prefix, _, name = model.partition(":")
    if prefix not in MODELS:
        raise ValueError(f"model: {model!r} is not a model (echo, openai:<model>, or an async callable)")
    return MODELS[prefix](name, base_url=base_url, api_key=api_key)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event. Split as bytes: a chunk may end in the middle of a character."""
    rest = b""
    data: list[bytes] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data == [b"[DONE]"]:  # the only event that is worth something without its empty line
        yield data[0]


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
    """{"error": {"message": …}}, {"error": …}, {"message": …} and {"detail": …} are all in use."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return text_of(body) or "no reason given"
