"""A support desk that knows your order: it remembers a session, streams its replies, and mounts an app.

Needs no API key and no network. Its memory is in its process, so it uses session affinity: every message of a session
reaches the same instance.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from swiftclaw import Agent

SESSIONS = 1000  # the one unused for longest is forgotten first
BLOCK = 64 * 1024
STAGES = ("being packed", "on its way", "delivered")

agent = Agent(name="support", session_affinity=True)


@dataclass
class Customer:
    name: str = ""
    order: str = ""


customers: OrderedDict[str, Customer] = OrderedDict()
warehouse: dict[str, bool] = {"open": False}


@agent.on_start
async def open_warehouse() -> None:
    warehouse["open"] = True


@agent.on_stop
async def close_warehouse() -> None:
    warehouse["open"] = False


@agent.health_check
async def check() -> dict[str, str]:
    if not warehouse["open"]:
        return {"status": "unhealthy", "reason": "the warehouse does not answer"}
    return {"status": "healthy"}


@agent.on_message
async def help_customer(message: str, messages: list[dict[str, Any]], session_id: str | None) -> AsyncIterator[str]:
    """Answers word by word. Clients of the chat API send the whole conversation: what the user said before counts too."""
    customer = customer_of(session_id)
    for earlier in messages[:-1]:
        if earlier["role"] == "user":
            reply(str(earlier.get("content")), customer)
    for word in re.findall(r"\S+\s*", reply(str(message), customer)):
        yield word


def customer_of(session_id: str | None) -> Customer:
    """The customer of this session; without one, a new customer."""
    if session_id is None:
        return Customer()
    customer = customers.setdefault(session_id, Customer())
    customers.move_to_end(session_id)
    if len(customers) > SESSIONS:
        customers.popitem(last=False)
    return customer


def reply(message: str, customer: Customer) -> str:
    if name := re.search(r"\b(?:my name is|call me)\s+([^\W\d]+)", message, re.IGNORECASE):
        customer.name = name[1]
    order = re.search(r"\border\b(?:\s+(?:number|no\.?))?(?:\s+is)?\s*[:#]?\s*(\d+)", message, re.IGNORECASE)
    if order:
        customer.order = order[1]
    greeting = f"{customer.name}, " if customer.name else ""
    if customer.order and (order or "order" in message.lower()):
        return f"{greeting}your order {customer.order} is {stage(customer.order)}."
    if name:
        return f"Hello {customer.name}, what is your order number?"
    return f"{greeting}please tell me your order number, as in: my order number is 1042."


def stage(order: str) -> str:
    return STAGES[int(order[-3:]) % len(STAGES)]


async def show_order(request: Request) -> JSONResponse:
    order = str(request.path_params["id"])
    return JSONResponse({"id": int(order), "status": stage(order)})


async def download(request: Request) -> StreamingResponse:
    """As many bytes as requested, generated while they are sent."""
    size: int = request.path_params["n"]

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, size, BLOCK):
            yield bytes(min(BLOCK, size - start))

    return StreamingResponse(blocks(), media_type="application/octet-stream", headers={"content-length": str(size)})


async def upload(request: Request) -> JSONResponse:
    """Counts the bytes as they arrive; keeps none."""
    size = 0
    async for block in request.stream():
        size += len(block)
    return JSONResponse({"bytes": size})


async def talk(websocket: WebSocket) -> None:
    """Echoes every message."""
    await websocket.accept()
    while (event := await websocket.receive())["type"] == "websocket.receive":
        if event.get("text") is not None:
            await websocket.send_text(event["text"])
        else:
            await websocket.send_bytes(event["bytes"])


agent.mount(
    Starlette(
        routes=[
            Route("/orders/{id:int}", show_order),
            Route("/download/{n:int}", download),
            Route("/upload", upload, methods=["POST"]),
            WebSocketRoute("/ws", talk),
        ]
    )
)
