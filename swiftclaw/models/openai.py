"""`model="openai:<model>"`: a model on any server with the OpenAI chat API (OpenAI, vLLM, SGLang, Ollama, gateways …).

Completions and chunks are passed on as the server sends them. What a server may do wrong has an end and a name: silence, a
response that is too large, broken off, or not the chat API raises ModelError.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp

from cluster.transport.sse import EventParser, ServerEvent
from deployments.request.openai import as_chunks, chat_messages, message_text
from swiftclaw.models.base import Messages, ModelError
from swiftclaw.models.endpoint import Endpoint
from swiftclaw.models.refusals import error_within, model_error

_CONNECT_S = 10.0
_LARGEST = 64 * 1024 * 1024  # bytes of a whole response, and of one event of a stream


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
        """The text of the first choice; of a refusal, its text; "" for an answer of tool calls only."""
        completion = await self.complete(chat_messages(message), **options)
        return message_text(completion["choices"][0]["message"])

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        async with aclosing(self.chunks(chat_messages(message), **options)) as chunks:
            async for chunk in chunks:
                for choice in chunk.get("choices") or ():
                    if choice.get("index", 0) == 0 and (text := message_text(choice.get("delta") or {})):
                        yield text

    async def complete(self, messages: Messages, **options: Any) -> dict[str, Any]:
        """The server's `chat.completion`, unchanged; every choice has a message."""
        async with self._response({**options, "model": self._model, "messages": messages, "stream": False}) as response:
            completion = self._object(await self._whole(response))
        choices = completion.get("choices")
        if not isinstance(choices, list) or not choices:
            raise self._failure("the response has no choices")
        if not all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices):
            raise self._failure("the response has a choice without a message")
        return completion

    async def chunks(self, messages: Messages, **options: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The server's `chat.completion.chunk` objects, unchanged, as they arrive."""
        async with self._response({**options, "model": self._model, "messages": messages, "stream": True}) as response:
            if response.content_type == "application/json":  # the server does not stream
                async for chunk in as_chunks(self._object(await self._whole(response))):
                    yield chunk
                return
            unfinished: dict[object, bool] = {}  # by the choice's index
            async with aclosing(self._events(response)) as events:
                async for event in events:
                    if event.data == b"[DONE]":
                        return
                    chunk = self._chunk(event)
                    for choice in chunk.get("choices") or ():
                        index = choice.get("index", 0)
                        unfinished[index] = not choice.get("finish_reason") and unfinished.get(index, True)
                    yield chunk
            if not unfinished or any(unfinished.values()):  # some servers omit [DONE], none omits the reason
                raise self._failure("the stream ended before the reply was complete")

    async def close(self) -> None:
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def _response(self, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with a 2xx status. Raises ModelError, also for what goes wrong while it is read."""
        endpoint = Endpoint.resolve(self._base_url, self._api_key)
        try:
            request = self._session().post(
                endpoint.url, json=body, headers=endpoint.headers, proxy=endpoint.proxy, allow_redirects=False
            )
            async with request as response:
                if not 200 <= response.status < 300:
                    raise await model_error(response, endpoint)
                yield response
        except asyncio.TimeoutError as error:
            raise self._failure("timeout while waiting for data", timed_out=True) from error
        except aiohttp.ClientConnectorError as error:
            raise ModelError(f"{self._model}: {error}", public="the model server cannot be reached") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ModelError(
                f"{self._model}: {error or type(error).__name__}", public="the connection to the model server broke"
            ) from error

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > _LARGEST:
                raise self._failure(f"the response is larger than {_LARGEST} bytes")
        return b"".join(pieces)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncGenerator[ServerEvent, None]:
        parser, pending = EventParser(), 0
        async for piece in response.content.iter_any():
            pending += len(piece)
            for event in parser.feed(piece):
                pending = 0
                yield event
            if pending > _LARGEST:
                raise self._failure(f"an event of the stream is larger than {_LARGEST} bytes")
        for event in parser.end():
            yield event

    def _chunk(self, event: ServerEvent) -> dict[str, Any]:
        chunk = self._object(event.data)
        if event.name == b"error":
            raise self._error(chunk)
        choices = chunk.get("choices")
        if choices is not None and not (isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)):
            raise self._failure("the response has choices that are not objects")
        return chunk

    def _object(self, data: bytes) -> dict[str, Any]:
        """The JSON object. An object with `error` is a failure, even in a stream or with status 200. Raises ModelError."""
        try:
            value = json.loads(data, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise self._failure("the response is not JSON") from error
        if not isinstance(value, dict):
            raise self._failure("the response is not a JSON object")
        if value.get("error"):
            raise self._error(value)
        return value

    def _error(self, body: dict[str, Any]) -> ModelError:
        return error_within(body, Endpoint.resolve(self._base_url, self._api_key))

    def _failure(self, problem: str, *, timed_out: bool = False) -> ModelError:
        return ModelError(f"{self._model}: {problem}", public=f"the model server failed: {problem}", timed_out=timed_out)

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


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
