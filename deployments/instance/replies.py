"""A handler's reply as HTTP: one JSON body or server-sent events, in the native form or in that of OpenAI's chat API.

Requests are counted and refused elsewhere (deployments/instance/server.py): every request that arrives here is answered.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

from starlette.responses import Response

from cluster.messages import SESSION_HEADER, SESSION_MOVED_HEADER, InstanceSpec
from cluster.transport import sse
from deployments.instance import reply_values
from deployments.instance.hosted_agent import Cancellation, HostedAgent, RequestInfo, Turn
from deployments.request import json_body, openai
from deployments.request.accept import prefers_events
from deployments.request.exchange import Exchange
from policies.errors import BadRequest


class Replies:
    """The replies of one agent. `instance`: the instance's current name. Raises BadRequest, and what the handler raises."""

    def __init__(self, agent: HostedAgent, spec: InstanceSpec) -> None:
        self._agent, self._spec = agent, spec

    async def message(self, exchange: Exchange, instance: str) -> None:
        body = json_body.parse(await exchange.whole_body())
        if "message" not in body:
            raise BadRequest("message: is required")
        for name in ("session_id", "user_id"):
            if not isinstance(body.get(name), (str, type(None))):
                raise BadRequest(f"{name}: must be a string")
        if not isinstance(body.get("stream"), (bool, type(None))):
            raise BadRequest("stream: must be true or false")
        message = body["message"]
        stream = bool(body["stream"]) if "stream" in body else prefers_events(exchange.headers)
        session = _session(exchange, _text(body.get("session_id"))) or secrets.token_hex(16)
        info = self._info(exchange, body, instance, openai.chat_messages(message))
        reply = await self._agent.answer(Turn(message, session, _text(body.get("user_id")), info, stream))
        if isinstance(reply, openai.Completion):
            reply = openai.reply_of(reply)
        if isinstance(reply, Response):
            await _send_response(exchange, reply)
            return
        if stream:
            await self._stream(exchange, _deltas(_pieces(reply)))
            return
        if isinstance(reply, AsyncIterator):
            reply = await _joined(reply)
        await _answer(exchange, {"reply": reply, "session_id": session})

    async def chat(self, exchange: Exchange, instance: str) -> None:
        body = json_body.parse(await exchange.whole_body())
        chat_request = openai.ChatRequest.parse(body)
        session = _session(exchange, chat_request.session_id)
        message, stream = openai.last_user_text(chat_request.messages), chat_request.stream
        info = self._info(exchange, body, instance, chat_request.messages)
        reply = await self._agent.answer(Turn(message, session, chat_request.user_id, info, stream, chat_request.options))
        if isinstance(reply, openai.CompletionStream):
            await self._stream(exchange, _renamed(reply.chunks, chat_request.model))
            return
        answer_id, created = f"chatcmpl-{exchange.request_id}", int(time.time())
        if isinstance(reply, openai.Completion):
            await self._completion(exchange, reply, chat_request)
            return
        if isinstance(reply, Response):
            await _send_response(exchange, reply)
            return
        if stream:
            shape = openai.Chunks(answer_id, created, chat_request.model, chat_request.messages, chat_request.include_usage)
            await self._stream(exchange, _chat_chunks(shape, _pieces(reply)))
            return
        if isinstance(reply, AsyncIterator):
            reply = await _joined(reply)
        content, messages = reply_values.text_of(reply), chat_request.messages
        model = chat_request.model
        await _answer(exchange, openai.completion(content, id=answer_id, created=created, model=model, messages=messages))

    async def _completion(self, exchange: Exchange, reply: openai.Completion, chat_request: openai.ChatRequest) -> None:
        """A completion of the model server: whole, or as the stream that the client asked for."""
        if not chat_request.stream:
            await _answer(exchange, {**reply, "model": chat_request.model})
            return
        await self._stream(exchange, _renamed(openai.as_chunks(reply), chat_request.model))

    async def _stream(self, exchange: Exchange, chunks: AsyncGenerator[object, None]) -> None:
        """Server-sent events. An exception after the first one becomes `event: error`."""
        async with contextlib.aclosing(chunks):
            first = await anext(chunks, None)  # an exception before this is an ordinary 500
            await exchange.start(200, sse.HEADERS)
            if first is not None:
                await exchange.write(_event(first), more=True)
            async for chunk in chunks:
                await exchange.write(_event(chunk), more=True)
            await exchange.write(sse.DONE, more=False)

    def _info(
        self, exchange: Exchange, body: dict[str, object], instance: str, messages: Sequence[Mapping[str, Any]]
    ) -> RequestInfo:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers}
        moved = exchange.header(SESSION_MOVED_HEADER) is not None
        cancelled = Cancellation()
        exchange.on_cancelled = cancelled.set
        return RequestInfo(headers, body, instance, self._spec.region, self._spec.version, messages, moved, cancelled)


def _session(exchange: Exchange, from_body: str | None) -> str | None:
    name = exchange.header(SESSION_HEADER)
    return unquote(name.decode("latin-1"), errors="surrogatepass") if name else from_body


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


async def _deltas(pieces: AsyncGenerator[str, None]) -> AsyncGenerator[object, None]:
    async with contextlib.aclosing(pieces):
        async for text in pieces:
            yield {"delta": text}


async def _renamed(chunks: AsyncGenerator[dict[str, Any], None], model: str) -> AsyncGenerator[object, None]:
    """A model server's chunks, in the agent's name."""
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            yield {**chunk, "model": model}


async def _chat_chunks(shape: openai.Chunks, pieces: AsyncGenerator[str, None]) -> AsyncGenerator[object, None]:
    """The model's name is the agent's; the first chunk waits for the first text, so that an early failure is a 500."""
    async with contextlib.aclosing(pieces):
        first = await anext(pieces, None)
        yield shape.first()
        if first is not None:
            yield shape.delta(first)
        async for text in pieces:
            yield shape.delta(text)
    for chunk in shape.last():
        yield chunk


async def _pieces(reply: object) -> AsyncGenerator[str, None]:
    """Any reply as pieces of text; its iterator is closed when the reader stops."""
    if not isinstance(reply, AsyncIterator):
        yield reply_values.text_of(reply)
        return
    pieces = reply_values.TextPieces()
    try:
        async for piece in reply:
            yield pieces.text(piece)
    finally:
        close = getattr(reply, "aclose", None)
        if close is not None:
            await close()


async def _joined(reply: AsyncIterator[object]) -> str:
    return "".join([piece async for piece in _pieces(reply)])


async def _answer(exchange: Exchange, body: object) -> None:
    await exchange.answer(200, reply_values.encode(body).encode())


async def _send_response(exchange: Exchange, response: Response) -> None:
    """A Starlette response that the handler made, as it is, with its background tasks."""

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            exchange.started, exchange.status = True, message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            exchange.done()  # the client may disconnect now: background tasks go on
        await exchange.send(message)

    await response(exchange.scope, exchange.receive, send)


def _event(chunk: object) -> bytes:
    return sse.encode(reply_values.encode(chunk))
