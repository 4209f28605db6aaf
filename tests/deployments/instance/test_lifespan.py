"""The mounted app's lifespan, alone and in front of requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request

from deployments.instance.lifespan import Lifespan, StartupFailed
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane


def app_that_notes(events: list[str], *, fails_to: str = "") -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        if fails_to == "start":
            raise ConnectionError("the database does not answer")
        app.state.db = "ready"
        events.append("started")
        yield {"counter": [0]}
        if fails_to == "stop":
            raise ConnectionError("the database does not answer")
        events.append("stopped")

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state(request: Request) -> dict[str, object]:
        request.state.counter[0] += 1
        request.state.own = hasattr(request.state, "own")
        return {"db": request.app.state.db, "count": request.state.counter[0], "shared": request.state.own}

    return app


async def test_an_app_starts_before_its_first_request_and_stops_after_the_last(plane: DataPlane) -> None:
    agent, events = Agent("fa"), []  # type: ignore[var-annotated]
    agent.mount(app_that_notes(events))
    await plane.add(agent)
    assert events == ["started"]
    for count in (1, 2):
        async with plane.client.get("/agents/fa/state") as response:
            expected = {"db": "ready", "count": count, "shared": False}
            assert await response.json() == expected, "each request has a copy of the state, which shares its values"
    await plane.end("fa-instance-1")
    assert events == ["started", "stopped"]


async def test_a_startup_that_fails_names_the_reason() -> None:
    with pytest.raises(StartupFailed) as failed:
        await Lifespan(app_that_notes([], fails_to="start")).startup()
    assert str(failed.value) == "the mounted app failed to start: ConnectionError: the database does not answer"


async def test_an_app_that_leaves_the_process_in_its_startup_has_failed_to_start() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise SystemExit(2)
        yield

    with pytest.raises(StartupFailed, match="SystemExit: 2"):
        await Lifespan(FastAPI(lifespan=lifespan)).startup()


async def test_a_shutdown_that_fails_or_hangs_ends_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    failing = Lifespan(app_that_notes([], fails_to="stop"))
    await failing.startup()
    await failing.shutdown(5)
    assert "failed to shut down" in caplog.text and "the database does not answer" in caplog.text

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.Event().wait()

    hanging = Lifespan(hangs)
    await hanging.startup()
    await hanging.shutdown(0.05)
    assert "did not shut down within 0.05 s" in caplog.text


async def test_startup_and_shutdown_are_one_task() -> None:
    """Task groups and cancel scopes must be left by the task that entered them."""
    tasks = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        tasks.append(asyncio.current_task())

    made = Lifespan(FastAPI(lifespan=lifespan))
    await made.startup()
    await asyncio.create_task(made.shutdown(5))
    assert tasks[0] is tasks[1] is not None


async def raises(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"


async def returns(scope: Any, receive: Any, send: Any) -> None:
    pass


async def answers_as_if_it_were_http(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize("app", [raises, returns, answers_as_if_it_were_http, None])
async def test_an_app_without_lifespan_is_served_without(app: Any) -> None:
    made = Lifespan(app)
    await made.startup()
    await made.shutdown(5)


async def test_an_app_that_reports_a_failure_and_stays_has_failed_to_start() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no licence"})
        await asyncio.Event().wait()

    with pytest.raises(StartupFailed, match="failed to start: no licence"):
        await Lifespan(app).startup()
