"""A model server of the chat API, and agents in front of it: its answers repeat the request, or are what the test says."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class ModelServer:
    """`requests`: the bodies. `script`: (status, headers, body) of the next answers, in order; without one it repeats."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: list[tuple[int, dict[str, str], bytes]] = []
        self.pause_s = 0.0  # between the pieces of a stream
        self.breaks_after: int | None = None  # pieces of a stream
        self.url = ""
        self.gone = asyncio.Event()  # a client left its stream

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if self.script:
            status, headers, content = self.script.pop(0)
            return web.Response(status=status, headers={"content-type": "application/json", **headers}, body=content)
        if body.get("temperature", 1) > 2:
            error = {"message": "temperature: at most 2", "type": "invalid_request_error", "param": "temperature", "code": None}
            return web.json_response({"error": error}, status=400)
        return await self._stream(request, body) if body.get("stream") else web.json_response(_completion(body))

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, chunk in enumerate(_chunks(body)):
            if number == self.breaks_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            try:
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
                await asyncio.sleep(self.pause_s)
            except (asyncio.CancelledError, ConnectionError):
                self.gone.set()
                raise
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def serving() -> AsyncIterator[ModelServer]:
    server = ModelServer()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    asked = json.dumps(
        {name: value for name, value in body.items() if name != "model" and value not in (False, None)}, sort_keys=True
    )
    return {
        "id": "chatcmpl-" + hashlib.sha256(asked.encode()).hexdigest()[:12],
        "object": kind,
        "created": 1700000000,
        "model": body["model"],
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "x_asked": asked,
    }


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """One message per choice: a tool call if there are tools, a refusal on request, else text."""
    if body.get("tools"):
        calls = [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}]
        one: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    elif body.get("seed") == 13:
        one = {"role": "assistant", "content": None, "refusal": "I will not"}
    else:
        one = {"role": "assistant", "content": "so many words", "refusal": None}
    return [one] * (body.get("n") or 1)


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    token = {"token": "so", "bytes": [115], "logprob": -0.1, "top_logprobs": []}
    logprobs = {"content": [token]} if body.get("logprobs") else None
    reason = "length" if body.get("max_tokens") else "tool_calls" if body.get("tools") else "stop"
    return {
        **_head(body, "chat.completion"),
        "choices": [
            {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}
            for index, message in enumerate(_messages(body))
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def _chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    whole = _completion(body)
    head = {**_head(body, "chat.completion.chunk")}
    chunks: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        message, index = choice["message"], choice["index"]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for call in message.get("tool_calls") or ():
            function = call["function"]
            deltas.append({"tool_calls": [{**call, "index": 0, "function": {**function, "arguments": ""}}]})
            deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": letter}}]} for letter in function["arguments"]]
        deltas += [{"content": word} for word in (message["content"] or "").split()]
        deltas += [{"refusal": word} for word in (message.get("refusal") or "").split()]
        rows = [{"index": index, "delta": delta, "logprobs": choice["logprobs"], "finish_reason": None} for delta in deltas]
        chunks += [{**head, "choices": [row]} for row in rows]
        chunks.append({**head, "choices": [{"index": index, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks = [{**chunk, "usage": None} for chunk in chunks]
        chunks.append({**head, "choices": [], "usage": whole["usage"]})
    return chunks
