"""The agents of test_field_cases.py: what users bring, each with something that has gone wrong in systems of this kind."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from pydantic import BaseModel
from starlette.responses import JSONResponse

from swiftclaw import Agent

# --- agents that repeat what they receive -------------------------------------------------------------------------


def repeating(name: str) -> Agent:
    made = Agent(name)

    @made.on_message
    async def handle(message: object, session_id: str | None) -> object:
        return {"got": message, "session": session_id}

    return made


echo, other, addressed = repeating("echo"), repeating("other"), repeating("addressed")

# --- an agent without a handler ---------------------------------------------------------------------------------------

plain = Agent("plain", model="openai:m", base_url="http://127.0.0.1:9/v1")

# --- what handlers return and raise -----------------------------------------------------------------------------------

values = Agent("values")


class Order(BaseModel):
    order_id: int
    name: str


class Stop(BaseException):
    """As an ExceptionGroup of cancel scopes, or what pytest's `outcomes` raise."""


@dataclasses.dataclass
class Point:
    x: float


@values.on_message
async def value_of(message: str) -> Any:
    if message == "cancelled":
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task
    if message == "exit":
        sys.exit(2)
    if message == "base":
        raise Stop
    return {
        "nan": float("nan"),
        "score": {"score": float("-inf")},
        "pydantic": Order(order_id=1, name="ada"),
        "dataclass": Point(1.5),
        "bytes": b"b",
        "set": {1},
        "datetime": datetime.datetime(2025, 1, 2, 3, 4),
        "response": JSONResponse({"own": True}),
    }[message]


# --- handlers in threads ----------------------------------------------------------------------------------------------

threaded = Agent("threaded")
_lock, _running, _most = threading.Lock(), 0, 0


@threaded.on_message
def count_threads(message: str) -> int:
    global _running, _most
    with _lock:
        _running += 1
        _most = max(_most, _running)
    try:
        time.sleep(float(message))
    finally:
        with _lock:
            _running -= 1
    return _most


checked = Agent("checked")


@checked.health_check
def check() -> dict[str, str]:
    return {"status": "healthy"}


@checked.on_message
async def block_threads(message: str) -> str:
    await asyncio.to_thread(time.sleep, float(message))
    return "ok"


# --- an agent that has no instance while nobody asks ------------------------------------------------------------------

zero = repeating("zero")

# --- a mounted app ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    app.state.db = "ready"
    yield {"pool": "open"}


app = FastAPI(lifespan=lifespan)
closed: list[dict[str, Any]] = []


@app.get("/state")
async def state(request: Request) -> dict[str, str]:
    return {"db": request.app.state.db, "pool": request.state.pool}


@app.get("/things/")
async def things(request: Request) -> dict[str, Any]:
    return {
        "url": str(request.url_for("things")),
        "client": request.client.host if request.client else None,
        "forwarded": {name: value for name, value in request.headers.items() if "forward" in name or name == "x-real-ip"},
    }


@app.get("/closed")
async def last_closed() -> dict[str, Any]:
    return closed[-1] if closed else {}


@app.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept(headers=[(b"x-app", b"accepted"), (b"set-cookie", b"a=b")])
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if message["text"] == "close":
            await websocket.close(4403, "not allowed")
            return
        await websocket.send_text(message["text"])
    closed.append({"code": message["code"], "reason": message["reason"]})


@app.websocket("/denied")
async def denied(websocket: WebSocket) -> None:
    await websocket.send_denial_response(JSONResponse({"why": "key"}, 401, {"www-authenticate": "Bearer"}))


mounted = Agent("mounted")
mounted.mount(app)
