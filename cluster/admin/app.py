"""The admin port: the cluster's state as JSON, Prometheus text, event streams and the dashboard page. Read-only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from cluster.admin.live import Live
from cluster.admin.prometheus import exposition
from cluster.admin.views import Views
from cluster.config.mistakes import ConfigError
from cluster.config.values import duration
from cluster.telemetry.events import KINDS
from cluster.telemetry.history import COLUMNS
from cluster.transport import sse
from cluster.view import ClusterView

DASHBOARD = Path(__file__).parent / "dashboard"
POINTS = 120  # of a history, by default
MAX_POINTS = 1440
EVERY_S = 1.0
KEEPALIVE_S = 10.0  # a stream without events sends a comment this often
CONTENT_POLICY = b"default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class BadQuery(ValueError):
    """An invalid query parameter. The message names it and what is allowed."""


class AdminApp:
    """Routes requests to the views of one cluster."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._views = Views(view)
        self._live = Live(view, self._views)

    def app(self) -> Starlette:
        of_agent = self._of_agent
        return Starlette(
            routes=[
                Route("/metrics", self.metrics),
                Route("/api/status", self.status),
                Route("/api/events", self.events),
                Route("/api/agents", self.agents),
                Route("/api/agents/{agent}", of_agent(self._views.agent)),
                Route("/api/agents/{agent}/instances", of_agent(self._views.instances)),
                Route("/api/agents/{agent}/load", of_agent(self._views.load)),
                Route("/api/agents/{agent}/history", self.history),
                Route("/api/agents/{agent}/live", self.live),
                Route("/dashboard", self.dashboard),
                Mount("/dashboard", _Page(directory=DASHBOARD, html=True)),
            ],
            exception_handlers={BadQuery: _bad_query},
        )

    async def metrics(self, _: Request) -> Response:
        return Response(exposition(self._view), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(self, _: Request) -> Response:
        return JSONResponse(self._views.status())

    async def agents(self, _: Request) -> Response:
        return JSONResponse(self._views.agents())

    async def history(self, request: Request) -> Response:
        agent = request.path_params["agent"]
        if not self._views.has(agent):
            return _unknown(agent)
        window_s, points = _duration(request, "window", "15m"), _whole(request, "points", POINTS, MAX_POINTS)
        columns = request.query_params.get("columns", ",".join(COLUMNS)).split(",")
        if wrong := [name for name in columns if name not in COLUMNS]:
            raise BadQuery(f"columns: {wrong[0]!r} is not a column (allowed: {', '.join(COLUMNS)})")
        return JSONResponse(self._live.history(agent, window_s, points, columns))

    async def live(self, request: Request) -> Response:
        """The dashboard's data once a second, as server-sent events. With `?once=1`, a single frame as JSON."""
        agent = request.path_params["agent"]
        if not self._views.has(agent):
            return _unknown(agent)
        if _flag(request, "once"):
            return JSONResponse(self._live.now(agent))
        return StreamingResponse(self._frames(agent), media_type="text/event-stream", headers=STREAM_HEADERS)

    async def _frames(self, agent: str) -> AsyncIterator[bytes]:
        while self._views.has(agent):
            yield _event(self._live.now(agent))
            await asyncio.sleep(EVERY_S)
        yield sse.encode("{}", name="gone")

    async def events(self, request: Request) -> Response:
        """The newest `limit` events, oldest first. With `?follow=1`, also every later one, as server-sent events."""
        query = request.query_params
        agent, kind = query.get("agent"), query.get("kind")
        if kind is not None and kind not in KINDS:
            raise BadQuery(f"kind: {kind!r} is not an event kind (allowed: {', '.join(KINDS)})")
        limit = _whole(request, "limit", 100, 10_000)
        resumed = request.headers.get("last-event-id", "")
        after = int(resumed) if resumed.isdecimal() else _whole(request, "after", -1, 2**53)
        if _flag(request, "follow"):
            stream = self._follow(agent, kind, after, limit)
            return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)
        matching = self._view.events.find(agent=agent, kind=kind, after=after, limit=limit)
        return JSONResponse([event.as_json() for event in matching])

    async def _follow(self, agent: str | None, kind: str | None, after: int, limit: int | None) -> AsyncIterator[bytes]:
        events = self._view.events
        while True:
            newest = events.last
            for event in events.find(agent=agent, kind=kind, after=after, limit=limit):
                yield _event(event.as_json(), event.id)
            after, limit = newest, None
            if not await events.wait(after, KEEPALIVE_S):
                yield b": keepalive\n\n"

    async def dashboard(self, request: Request) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/dashboard/{query}")

    def _of_agent(self, view: Callable[[str], object]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            agent = request.path_params["agent"]
            return JSONResponse(view(agent)) if self._views.has(agent) else _unknown(agent)

        return answer


class _Page(StaticFiles):
    """The dashboard's files, with headers that forbid the browser to load anything from other origins."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"content-security-policy", CONTENT_POLICY),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cache-control", b"no-cache"),
                ]
            await send(message)

        await super().__call__(scope, receive, send_with_headers)


def _event(content: object, number: int | None = None) -> bytes:
    return sse.encode(json.dumps(content, separators=(",", ":")), id=number)


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("1", "true", "yes")


def _whole(request: Request, name: str, default: int, maximum: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) > maximum:
        raise BadQuery(f"{name}: {text!r} is not a whole number from 0 to {maximum}")
    return int(text)


def _duration(request: Request, name: str, default: str) -> float:
    text = request.query_params.get(name, default)
    try:
        seconds = duration(text)
    except (ConfigError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise BadQuery(f"{name}: {text!r} is not a duration (examples: 15m, 24h)")
    return seconds


async def _bad_query(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": {"type": "bad_request", "message": str(error)}}, 400)


def _unknown(agent: str) -> Response:
    return JSONResponse({"error": {"type": "unknown_agent", "message": f"there is no agent {agent!r}", "agent": agent}}, 404)
