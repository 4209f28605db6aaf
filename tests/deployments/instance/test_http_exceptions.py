"""An HTTPException that a handler raises is the response, as under FastAPI: in the native form and in OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import openai
import pytest
from starlette.exceptions import HTTPException

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post

TASK_GROUP: Any = getattr(asyncio, "TaskGroup", None)  # Python 3.11


def raising(error: Exception, *, sync: bool = False) -> Agent:
    agent = Agent("raising")

    @agent.on_message
    async def handle(message: str) -> str:
        raise error

    if sync:
        agent = Agent("raising")

        @agent.on_message
        def handle_in_thread(message: str) -> str:
            raise error

    return agent


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("kind", [HTTPException, fastapi.HTTPException])
async def test_status_detail_and_headers_reach_the_client(plane: DataPlane, kind: Any, sync: bool) -> None:
    error = kind(401, "log in first", {"WWW-Authenticate": "Bearer", "Content-Length": "3", "X-Own": "grüße"})
    await plane.add(raising(error, sync=sync))
    status, answer, headers = await post(plane, "raising", {"message": "hi"})
    assert status == 401
    assert (answer["error"]["type"], answer["error"]["message"]) == ("agent_refused", "log in first")
    assert answer["error"]["agent"] == "raising" and answer["error"]["request_id"] == headers["x-request-id"]
    assert (headers["www-authenticate"], headers["content-type"]) == ("Bearer", "application/json")


async def test_a_detail_of_another_kind_is_passed_on_as_json(plane: DataPlane) -> None:
    await plane.add(raising(fastapi.HTTPException(422, [{"loc": ["body", "age"], "msg": "too young", "score": float("nan")}])))
    status, answer, _ = await post(plane, "raising", {"message": "hi"})
    assert (status, answer["error"]["message"]) == (422, "Unprocessable Entity")
    assert answer["error"]["detail"] == [{"loc": ["body", "age"], "msg": "too young", "score": None}]


async def test_a_detail_without_a_form_as_json_is_an_agent_error(plane: DataPlane) -> None:
    await plane.add(raising(fastapi.HTTPException(400, object())))
    status, answer, _ = await post(plane, "raising", {"message": "hi"})
    assert (status, answer["error"]["type"]) == (500, "agent_error")


async def test_the_openai_client_raises_its_own_error_for_it(plane: DataPlane) -> None:
    await plane.add(raising(fastapi.HTTPException(403, "not for you")))
    client = openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.PermissionDeniedError, match="not for you") as refused:
        await client.chat.completions.create(model="raising", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.type == "agent_refused"
    await client.close()


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(plane: DataPlane, status: int) -> None:
    await plane.add(raising(HTTPException(status, headers={"etag": '"a"'})))
    async with plane.client.post("/agents/raising/messages", json={"message": "hi"}) as response:
        assert (response.status, await response.read(), response.headers["etag"]) == (status, b"", '"a"')
        assert "content-length" not in response.headers


async def test_a_redirect_keeps_its_target(plane: DataPlane) -> None:
    await plane.add(raising(HTTPException(307, headers={"location": "/elsewhere"})))
    body = {"message": "hi"}
    async with plane.client.post("/agents/raising/messages", json=body, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (307, "/elsewhere")


async def test_what_is_no_status_is_an_agent_error(plane: DataPlane) -> None:
    await plane.add(raising(HTTPException(1000, "x")))
    status, answer, _ = await post(plane, "raising", {"message": "hi"})
    assert (status, answer["error"]["type"]) == (500, "agent_error")


async def test_in_a_stream_it_is_the_response_before_the_first_piece_and_an_event_after_it(plane: DataPlane) -> None:
    agent = Agent("stream")

    @agent.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        if message == "late":
            yield "one"
        raise HTTPException(409, "already running")

    await plane.add(agent)
    status, answer, _ = await post(plane, "stream", {"message": "early", "stream": True})
    assert (status, answer["error"]["message"]) == (409, "already running")
    async with plane.client.post("/agents/stream/messages", json={"message": "late", "stream": True}) as response:
        assert response.headers["x-accel-buffering"] == "no"
        text = await response.text()
    assert "event: error" in text and "already running" in text and "[DONE]" not in text


@pytest.mark.parametrize(("status", "opens"), [(400, False), (404, False), (429, False), (500, True), (503, True)])
async def test_4xx_counts_for_no_breaker_and_5xx_does(plane: DataPlane, status: int, opens: bool) -> None:
    plane.blocks["raising"] = {"circuitBreaker": {"failureThreshold": 3}}
    await plane.add(raising(HTTPException(status, "as it is")))
    answers = [(await post(plane, "raising", {"message": "hi"}))[0] for _ in range(8)]
    assert answers[:3] == [status] * 3
    kinds = (await post(plane, "raising", {"message": "hi"}))[1]["error"]["type"]
    assert kinds == ("circuit_open" if opens else "agent_refused")


@pytest.mark.skipif(TASK_GROUP is None, reason="exception groups: Python 3.11")
async def test_the_gravest_of_a_group_is_the_response(plane: DataPlane) -> None:
    agent = Agent("group")

    @agent.on_message
    async def handle(message: str) -> None:
        async def fail(status: int) -> None:
            raise HTTPException(status, f"number {status}")

        group: Any
        async with TASK_GROUP() as group:
            for status in (404, 409):
                group.create_task(fail(status))

    await plane.add(agent)
    status, answer, _ = await post(plane, "group", {"message": "hi"})
    assert (status, answer["error"]["message"]) == (409, "number 409")
