"""The agent behind every router: a bare ASGI app with the OpenAI chat API that answers at once with the same text.

A request's `metadata` (which every router passes on) may have an `id`, which is written to the file STUB_LOG with the
process's id when its work begins, so that a request that ran twice is found there; and `work_ms`, how long it then takes.
Each chunk of a stream carries in `system_fingerprint` the time at which it was sent (CLOCK_MONOTONIC in ns, which all
processes share).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOG_VARIABLE = "STUB_LOG"
MODEL = "stub"
CHUNKS = 20
GAP_S = 0.005
TEXT = "Your order 1042 has left our warehouse in Rotterdam this morning and should be with you before the weekend."
ABOUT = {"id": "chatcmpl-7f3c21", "created": 1790000000, "model": MODEL}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 21, "completion_tokens": 24, "total_tokens": 45}
ANSWER = json.dumps({**ABOUT, "object": "chat.completion", "choices": [CHOICE], "usage": USAGE}).encode()
END = b"data: [DONE]\n\n"
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1790000000, "owned_by": "stub"}]}
INFO = {"served_model_name": MODEL, "is_generation": True, "tp_size": 1, "dp_size": 1, "version": "0.5.0"}
PAGES = {  # what the routers of model servers ask their workers for; with the path of a tokenizer they would fetch it
    "/health": b"",
    "/v1/models": json.dumps(MODELS).encode(),
    "/version": b'{"version": "0.11.0"}',
    **dict.fromkeys(("/get_model_info", "/model_info", "/server_info", "/get_server_info"), json.dumps(INFO).encode()),
    "/metrics": b"",
    "/get_load": b"[]",
}
EVENT_STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")],
}


def chunk_parts(number: int) -> tuple[bytes, bytes]:
    """What stands before and after the time in the event of chunk `number`, counted from 0."""
    choice = {"index": 0, "delta": {"content": f"tok{number} "}, "finish_reason": "stop" if number == CHUNKS - 1 else None}
    event = {**ABOUT, "object": "chat.completion.chunk", "system_fingerprint": "@", "choices": [choice]}
    before, _, after = json.dumps(event).encode().partition(b"@")
    return b"data: " + before, after + b"\n\n"


def build(log: Path | None) -> App:
    """The app; `log`: where the id of each request that has one is written."""
    log_file = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    parts = [chunk_parts(number) for number in range(CHUNKS)]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["method"] != "POST":
            page = PAGES.get(scope["path"])
            await answer(send, 404 if page is None else 200, page or b"")
            return
        request = json.loads(body)
        if (asked := request.get("metadata")) is not None:
            if log_file is not None:
                os.write(log_file, f"{asked['id']} {os.getpid()}\n".encode())
            await asyncio.sleep(float(asked["work_ms"]) / 1000)
        if request.get("stream"):
            await stream(send)
        else:
            await answer(send, 200, ANSWER)

    async def answer(send: Send, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def stream(send: Send) -> None:
        await send(EVENT_STREAM)
        for number, (before, after) in enumerate(parts):
            if number:
                await asyncio.sleep(GAP_S)
            await send(
                {"type": "http.response.body", "body": b"%b%d%b" % (before, time.monotonic_ns(), after), "more_body": True}
            )
        await send({"type": "http.response.body", "body": END})

    return app


def from_environment() -> App:
    """`uvicorn --factory routing.stub:from_environment`."""
    log = os.environ.get(LOG_VARIABLE)
    return build(Path(log) if log else None)
