"""How an instance drains, from the gateway's side and from its own."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from cluster.messages import CLOSING, KEY_HEADER, REFUSED_HEADER, WATCH_PATH
from deployments.instance.draining import drain_server, drain_terms
from deployments.instance.lifecycle import Lifecycle
from deployments.instance.server import InstanceServer
from policies.lifecycle.draining import Drain, DrainTerms
from swiftclaw import Agent
from tests.deployments.conftest import KEY, DataPlane

PATIENCE_S = 20.0


class Gate:
    """An agent whose answers wait until they may go on."""

    def __init__(self) -> None:
        self.agent = Agent("gated")
        self.open = asyncio.Event()
        self.began = asyncio.Semaphore(0)
        self.agent.on_message(self.handle)

    async def handle(self, message: str) -> Any:
        if message == "stream":
            return self.pieces()
        self.began.release()
        if message != "quick":
            await self.open.wait()
        return "done"

    async def pieces(self) -> Any:
        yield "one"
        self.began.release()
        await self.open.wait()
        yield "two"


def leaving(host: InstanceServer, **terms: Any) -> asyncio.Task[None]:
    return asyncio.create_task(drain_server(host, Drain(DrainTerms(**terms), time.monotonic())))


async def ask(plane: DataPlane, message: str, **headers: str) -> tuple[int, Any, str]:
    """(status, body, who answered)"""
    async with plane.client.post("/agents/gated/messages", json={"message": message}, headers=headers) as response:
        return response.status, await response.json(), response.headers.get("x-swiftclaw-instance", "")


async def events(plane: DataPlane) -> str:
    async with plane.client.post("/agents/gated/messages", json={"message": "stream", "stream": True}) as response:
        return await response.text()


async def direct(plane: DataPlane, host: InstanceServer, replica: str) -> tuple[int, str | None]:
    url = f"http://127.0.0.1:{plane.listeners[replica].port}/messages"
    headers = {KEY_HEADER.decode(): KEY}
    async with aiohttp.ClientSession() as client, client.post(url, json={"message": "quick"}, headers=headers) as response:
        return response.status, response.headers.get(REFUSED_HEADER.decode())


async def test_a_drain_ends_when_the_request_and_the_stream_in_flight_have_finished(plane: DataPlane) -> None:
    gate = Gate()
    await plane.add(gate.agent)
    host = plane.hosts["gated-instance-1"]
    request, stream = asyncio.create_task(ask(plane, "wait")), asyncio.create_task(events(plane))
    await asyncio.wait_for(gate.began.acquire(), PATIENCE_S)
    await asyncio.wait_for(gate.began.acquire(), PATIENCE_S)
    leave = leaving(host, keep_sessions=False)
    await _until_refused(plane, host)
    assert not leave.done()
    gate.open.set()
    await asyncio.wait_for(leave, PATIENCE_S)
    status, body, _ = await request
    assert (status, body["reply"]) == (200, "done")
    assert (await stream).endswith("data: [DONE]\n\n")
    assert host.in_flight == 0


async def test_requests_that_a_closing_instance_refuses_are_answered_by_another(plane: DataPlane) -> None:
    gate = Gate()
    await plane.add(gate.agent, 2)
    await asyncio.wait_for(leaving(plane.hosts["gated-instance-1"], keep_sessions=False), PATIENCE_S)
    # The gateway was told nothing: it still sends there, and is refused.
    answers = [await ask(plane, "quick") for _ in range(10)]
    assert {by for _, _, by in answers} == {"instance-2"}


async def test_until_the_gateways_know_that_it_drains_an_instance_takes_requests(plane: DataPlane) -> None:
    gate = Gate()
    await plane.add(gate.agent)
    host = plane.hosts["gated-instance-1"]
    leave = leaving(host, keep_sessions=False)
    await asyncio.sleep(0)
    assert await direct(plane, host, "gated-instance-1") == (200, None)
    await asyncio.wait_for(leave, PATIENCE_S)
    assert await direct(plane, host, "gated-instance-1") == (503, CLOSING.decode())


async def test_a_session_bound_to_a_draining_instance_is_served_until_the_deadline(plane: DataPlane) -> None:
    gate = Gate()
    plane.blocks["gated"] = {"loadBalancing": {"sessionAffinity": {"enabled": True}}}
    await plane.add(gate.agent, 2)
    _, _, home = await ask(plane, "quick", **{"x-session-id": "s1"})
    host = plane.hosts[f"gated-{home}"]
    began = time.monotonic()
    leave = leaving(host, request_timeout_s=3.0)
    plane.mark("gated", home, "draining")
    served = []
    while not leave.done():
        status, _, by = await ask(plane, "quick", **{"x-session-id": "s1"})
        assert status == 200
        served.append((time.monotonic() - began, by))
        await asyncio.sleep(0.05)
    assert time.monotonic() - began >= 3.0
    assert {by for at, by in served if at < 2.5} == {home}
    assert (await ask(plane, "quick", **{"x-session-id": "s1"}))[2] != home


async def test_without_sessions_a_drain_is_short_whatever_the_timeouts(plane: DataPlane) -> None:
    gate = Gate()
    await plane.add(gate.agent)
    host = plane.hosts["gated-instance-1"]
    await asyncio.wait_for(leaving(host, request_timeout_s=3600.0, drain_timeout_s=7200.0), PATIENCE_S)
    assert host.session_at is None


async def test_a_request_without_an_answer_after_the_request_timeout_is_cancelled_with_a_named_error(plane: DataPlane) -> None:
    gate = Gate()
    await plane.add(gate.agent)
    request = asyncio.create_task(ask(plane, "wait"))
    await asyncio.wait_for(gate.began.acquire(), PATIENCE_S)
    await asyncio.wait_for(leaving(plane.hosts["gated-instance-1"], request_timeout_s=1.5, keep_sessions=False), PATIENCE_S)
    status, body, _ = await asyncio.wait_for(request, PATIENCE_S)
    assert (status, body["error"]["type"], body["error"]["agent"]) == (504, "request_timeout", "gated")
    assert body["error"]["message"] == "instance-1 was stopped before the request was answered"
    await _until_idle(plane)


async def test_a_stream_outlives_the_request_timeout_and_gets_an_error_event_at_the_drain_timeout(plane: DataPlane) -> None:
    gate = Gate()
    await plane.add(gate.agent)
    stream = asyncio.create_task(events(plane))
    await asyncio.wait_for(gate.began.acquire(), PATIENCE_S)
    began = time.monotonic()
    terms = {"request_timeout_s": 0.5, "drain_timeout_s": 3.0, "keep_sessions": False}
    await asyncio.wait_for(leaving(plane.hosts["gated-instance-1"], **terms), PATIENCE_S)
    assert time.monotonic() - began >= 3.0
    text = await asyncio.wait_for(stream, PATIENCE_S)
    assert text.startswith('data: {"delta": "one"}\n\nevent: error\n') and "[DONE]" not in text
    assert json.loads(text.rpartition("data: ")[2])["error"]["type"] == "instance_failed"
    await _until_idle(plane)


async def test_an_agent_that_ignores_its_cancellation_does_not_delay_the_end_of_the_process(plane: DataPlane) -> None:
    agent, began, release = Agent("gated"), asyncio.Event(), asyncio.Event()

    @agent.on_message
    async def stubborn(message: str) -> str:
        began.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    await plane.add(agent)
    host = plane.hosts["gated-instance-1"]
    request = asyncio.create_task(ask(plane, "wait"))
    await asyncio.wait_for(began.wait(), PATIENCE_S)
    await asyncio.wait_for(leaving(host, drain_timeout_s=0.5, keep_sessions=False), PATIENCE_S)
    assert host.in_flight == 1
    release.set()
    await request


@pytest.mark.parametrize("kind", ["stream", "websocket"])
async def test_open_responses_of_a_mounted_app_are_cancelled_at_the_drain_timeout(plane: DataPlane, kind: str) -> None:
    agent = Agent("gated")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.Event().wait()

    agent.mount(app)
    await plane.add(agent)
    host = plane.hosts["gated-instance-1"]
    if kind == "websocket":
        async with plane.client.ws_connect("/agents/gated/socket") as socket:
            await asyncio.wait_for(leaving(host, drain_timeout_s=0.5), PATIENCE_S)
            ended = await asyncio.wait_for(socket.receive(), PATIENCE_S)
            assert ended.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    else:
        async with plane.client.get("/agents/gated/feed") as response:
            assert await response.content.readany() == b"first"
            await asyncio.wait_for(leaving(host, drain_timeout_s=0.5), PATIENCE_S)
            with pytest.raises(aiohttp.ClientPayloadError):
                await asyncio.wait_for(response.content.read(), PATIENCE_S)
    await _until_idle(plane)


async def test_a_watch_reports_each_stage_and_ends_with_the_last(plane: DataPlane) -> None:
    await plane.add(Gate().agent)
    host = plane.hosts["gated-instance-1"]
    url = f"http://127.0.0.1:{plane.listeners['gated-instance-1'].port}{WATCH_PATH}"
    async with aiohttp.ClientSession() as client, client.get(url, headers={KEY_HEADER.decode(): KEY}) as watch:

        async def told() -> tuple[bool, bool]:
            line = json.loads(await asyncio.wait_for(watch.content.readline(), PATIENCE_S))
            return line["draining"], line["stopped"]

        assert await told() == (False, False)
        host.advance(Lifecycle.DRAINING)
        assert await told() == (True, False)
        host.advance(Lifecycle.STOPPED_ACCEPTING)
        assert await told() == (True, True)
        host.advance(Lifecycle.ENDED)
        assert await asyncio.wait_for(watch.content.read(), PATIENCE_S) == b""
    assert host.watchers == 0


REMEMBERED = DrainTerms(7.0, 70.0, keep_sessions=True)


async def test_an_instance_drains_on_the_terms_of_the_controller() -> None:
    async def terms() -> DrainTerms:
        return DrainTerms(1.0, 2.0, keep_sessions=False)

    assert await drain_terms(terms, REMEMBERED) == DrainTerms(1.0, 2.0, keep_sessions=False)


async def test_an_instance_of_a_removed_agent_drains_on_its_last_terms_without_waiting_for_sessions() -> None:
    async def gone() -> None:
        return None

    assert await drain_terms(gone, REMEMBERED) == DrainTerms(7.0, 70.0, keep_sessions=False)


async def test_without_an_answer_of_the_controller_an_instance_drains_on_its_last_terms() -> None:
    async def away() -> None:
        raise ConnectionError

    async def silent() -> None:
        await asyncio.Event().wait()

    assert await drain_terms(away, REMEMBERED) == REMEMBERED
    assert await drain_terms(silent, REMEMBERED, within_s=0.05) == REMEMBERED


async def _until_refused(plane: DataPlane, host: InstanceServer) -> None:
    ends = time.monotonic() + PATIENCE_S
    while (await direct(plane, host, "gated-instance-1"))[0] != 503:
        assert time.monotonic() < ends
        await asyncio.sleep(0.05)


async def _until_idle(plane: DataPlane) -> None:
    ends = time.monotonic() + PATIENCE_S
    while plane.active():
        assert time.monotonic() < ends
        await asyncio.sleep(0.05)
