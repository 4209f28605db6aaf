"""What several of these tests need: agents, requests, snapshots, and waiting for what is to come true."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as AppRequest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cluster.config import parse
from cluster.instance_state import InstanceState
from cluster.messages import AgentView, BreakerReport, Member, Snapshot
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane

ACCESS_LOG_ON = {"accessLog": {"enabled": True}}


def streaming(pieces: list[str], *, forever: bool = False, fails: bool = False, seen: list[str] | None = None) -> Agent:
    agent = Agent("streamer")

    @agent.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        try:
            for piece in pieces:
                yield piece
            if fails:
                raise ValueError("a secret detail")
            while forever:
                await asyncio.sleep(0.01)
                yield "tick"
        finally:
            if seen is not None:
                seen.append("closed")

    return agent


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"the condition is still false after {seconds:g} s"
        await asyncio.sleep(0.01)


async def post(plane: DataPlane, agent: str, body: Any, **options: Any) -> tuple[int, Any, Any]:
    async with plane.client.post(f"/agents/{agent}/messages", json=body, **options) as response:
        return response.status, await response.json(), response.headers


def own_app() -> Starlette:
    async def show(request: AppRequest) -> JSONResponse:
        return JSONResponse(
            {
                "path": request.scope["raw_path"].decode("latin-1"),
                "query": request.url.query,
                "method": request.method,
                "headers": dict(request.headers),
                "bytes": len(await request.body()),
            },
            headers={"x-own": "yes", "x-swiftclaw-instance": "forged"},
        )

    async def count(request: AppRequest) -> PlainTextResponse:
        total = 0
        async for piece in request.stream():
            total += len(piece)
        return PlainTextResponse(str(total))

    async def download(request: AppRequest) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(int(request.query_params["mb"])):
                yield b"x" * 1_000_000

        return StreamingResponse(pieces())

    async def socket(socket: WebSocket) -> None:
        await socket.accept(subprotocol="chat" if "chat" in socket.scope["subprotocols"] else None)
        async for text in socket.iter_text():
            if text == "bye":
                await socket.close(4001)
                return
            await socket.send_text(f"echo {text}")

    async def broken(request: AppRequest) -> None:
        raise RuntimeError("a secret detail")

    return Starlette(
        routes=[
            Route("/count", count, methods=["POST"]),
            Route("/download", download),
            Route("/broken", broken),
            WebSocketRoute("/ws", socket),
            Route("/{rest:path}", show, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
        ]
    )


def member(number: int, region: str = "us", state: InstanceState = "healthy", priority: int = 1, replica: str = "") -> Member:
    return Member(f"instance-{number}", replica or f"r{number}", "127.0.0.1", 1, "v1", region, priority, state)


def snapshot(
    *members: Member,
    version: str = "1",
    blocks: dict[str, Any] | None = None,
    circuits: dict[str, BreakerReport] | None = None,
    **balancing: Any,
) -> Snapshot:
    regions = {one.region: {"instances": 1} for one in members} or {"us": {}}
    agent = {"agent": "m:x", "regions": regions, "loadBalancing": balancing, **(blocks or {})}
    settings = parse({"agents": {"a": agent}}, Path("/"))
    views = {"a": AgentView(settings.agents["a"], False, members)}
    return Snapshot(version, "key", settings.http, views, ("11" * 32,), circuits=circuits or {})


class Lines:
    """What was written, parsed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text("utf-8").splitlines()] if self.file.exists() else []

    async def arrive(self, count: int) -> list[dict[str, Any]]:
        await until(lambda: len(self()) >= count)
        return self()
