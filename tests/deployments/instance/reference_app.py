"""One ASGI app that uses much of what apps use: the same under uvicorn and mounted in an agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

SHOWN = ("type", "method", "scheme", "root_path", "path", "query_string", "http_version", "asgi", "state", "subprotocols")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Item(BaseModel):
    name: str
    price: float


async def show_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """A raw ASGI endpoint."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    shown = {name: scope[name] for name in SHOWN if name in scope}
    shown["query_string"] = scope["query_string"].decode("latin-1")
    shown["raw_path"] = scope["raw_path"].decode("latin-1")
    shown["headers"] = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    shown["client"] = scope["client"][0]
    shown["server"] = scope["server"][0]
    shown["body"] = len(body)
    await JSONResponse(shown)(scope, receive, send)


async def unframed(scope: Scope, receive: Receive, send: Send) -> None:
    """Neither a length nor a type; duplicate and odd headers."""
    headers = [(b"x-twice", b"1"), (b"X-Twice", b"2"), (b"x-latin", b"caf\xe9"), (b"x-empty", b"")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in (b"one ", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"a part", "more_body": True})
    raise RuntimeError("a secret detail")


def reference_app(static: Path) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        app.state.log = []
        yield {"from_lifespan": "yes"}

    app = FastAPI(lifespan=lifespan)
    sub = FastAPI()
    sub.mount("/scope", show_scope)
    app.mount("/static", StaticFiles(directory=static, html=True))
    app.mount("/scope", show_scope)
    app.mount("/unframed", unframed)
    app.mount("/breaks", breaks)

    @sub.get("/things/", name="sub-things")
    async def sub_things(request: Request) -> list[str]:
        return [str(request.url_for("sub-things")), str(request.url), str(request.base_url)]

    app.mount("/sub", sub, name="sub")

    @app.get("/things/")
    @app.post("/things/")
    async def things(request: Request) -> list[str]:
        return [str(request.url_for("things")), str(request.url_for("sub", path="/x")), str(request.url), str(request.base_url)]

    @app.get("/to")
    async def to(where: str, status: int = 307) -> RedirectResponse:
        return RedirectResponse(where, status)

    @app.post("/items/{number}", status_code=201)
    async def item(number: int, item: Item, limit: int = 3) -> dict[str, Any]:
        return {"number": number, "limit": limit, **item.model_dump()}

    @app.post("/background")
    async def background(tasks: BackgroundTasks, note: str) -> str:
        async def later() -> None:
            await asyncio.sleep(0.02)
            app.state.log.append(note)

        tasks.add_task(later)
        tasks.add_task(app.state.log.append, note.upper())
        return "accepted"

    @app.get("/log")
    async def log() -> list[Any]:
        return list(app.state.log)

    @app.get("/session")
    async def session(request: Request) -> int:
        request.session["count"] = request.session.get("count", 0) + 1
        return int(request.session["count"])

    @app.get("/session/end")
    async def end(request: Request) -> str:
        request.session.clear()
        return "ended"

    @app.get("/stream")
    async def stream(pieces: int = 3, pause: float = 0, kind: str = "text/plain") -> StreamingResponse:
        async def content() -> AsyncIterator[str]:
            for number in range(pieces):
                await asyncio.sleep(pause)
                yield f"data: {number}\n\n"

        return StreamingResponse(content(), media_type=kind)

    @app.api_route("/status/{status}", methods=METHODS, include_in_schema=False)
    async def status(status: int) -> Response:
        return Response(status_code=status, headers={"x-status": str(status)})

    @app.get("/cookies")
    async def cookies(request: Request, response: Response) -> dict[str, str]:
        response.set_cookie("a", "1", path=request.scope["root_path"], httponly=True)
        response.set_cookie("b", "ü", samesite="strict")
        response.delete_cookie("c")
        return request.cookies

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("a secret detail")

    @app.get("/etag")
    async def etag(request: Request) -> Response:
        if request.headers.get("if-none-match") == '"1"':
            return Response(status_code=304, headers={"etag": '"1"', "content-length": "7"})
        return Response("content", headers={"etag": '"1"'})

    @app.get("/big")
    async def big(size: int = 100_000) -> PlainTextResponse:
        return PlainTextResponse("x" * size)

    @app.middleware("http")
    async def measured(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-middleware"] = request.url.path
        return response

    app.add_middleware(GZipMiddleware, minimum_size=50_000)
    app.add_middleware(SessionMiddleware, secret_key="reference")
    app.add_middleware(
        CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["GET", "PUT"], allow_credentials=True
    )
    add_websockets(app)
    return app


def add_websockets(app: FastAPI) -> None:
    @app.websocket("/ws/echo")
    async def echo(socket: WebSocket) -> None:
        wanted = [name for name in socket.scope["subprotocols"] if name != "unwanted"]
        await socket.accept(wanted[0] if wanted else None, [(b"x-accepted", b"yes"), (b"set-cookie", b"a=1")])
        while (message := await socket.receive())["type"] == "websocket.receive":
            if message.get("text") == "close":
                await socket.close(4403, "not allowed")
                return
            await socket.send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        app.state.log.append([message["code"], message["reason"]])

    @app.websocket("/ws/scope")
    async def scope(socket: WebSocket) -> None:
        await socket.accept()
        shown = {name: socket.scope[name] for name in SHOWN if name in socket.scope and name != "query_string"}
        urls = {"url": str(socket.url), "echo": str(socket.url_for("echo"))}
        await socket.send_json({**shown, **urls, "client": socket.scope["client"][0]})
        await socket.close()

    @app.websocket("/ws/deny/{status}")
    async def deny(socket: WebSocket, status: int) -> None:
        await socket.send_denial_response(JSONResponse({"status": status}, status, {"x-denied": "yes", "retry-after": "7"}))

    @app.websocket("/ws/close-first")
    async def close_first(socket: WebSocket) -> None:
        await socket.close(4000, "never accepted")

    @app.websocket("/ws/close")
    async def close(socket: WebSocket, code: int = 1000, reason: str = "") -> None:
        await socket.accept()
        await socket.close(code, reason)

    @app.websocket("/ws/typed/{number}")
    async def typed(socket: WebSocket, number: int) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await socket.send_json(await socket.receive_json())
            await socket.close()
