"""What a client of the public port sees, on real sockets: answers, streams, refusals and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import openai
import pytest
from yarl import URL

from cluster.messages import KEY_HEADER
from deployments.instance.lifecycle import Lifecycle
from deployments.proxy.in_process import InProcessClient, events
from deployments.proxy.proxied_request import ProxiedRequest
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import own_app, post, streaming, until


def echo(name: str = "echo") -> Agent:
    agent = Agent(name)

    @agent.on_message
    async def handle(message: str, session_id: str) -> str:
        return f"you said {message}"

    return agent


class TestMessages:
    async def test_a_message_is_answered_with_the_session_and_where_it_ran(self, plane: DataPlane) -> None:
        await plane.add(echo())
        status, answer, headers = await post(plane, "echo", {"message": "hi", "session_id": "s1"})
        assert (status, answer) == (200, {"reply": "you said hi", "session_id": "s1"})
        assert headers["x-swiftclaw-instance"] == "instance-1"
        assert headers["x-swiftclaw-version"] == "v1"
        assert headers["x-swiftclaw-region"] == "local"
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])

    async def test_a_session_is_made_when_none_is_given(self, plane: DataPlane) -> None:
        await plane.add(echo())
        _, one, _ = await post(plane, "echo", {"message": "hi"})
        _, other, _ = await post(plane, "echo", {"message": "hi"})
        assert one["session_id"] != other["session_id"]

    async def test_the_clients_request_id_is_kept_unless_it_is_unfit_for_a_header(self, plane: DataPlane) -> None:
        await plane.add(echo())
        for given, kept in (("abc-1", True), ("x" * 200, False), ("has space", False)):
            _, _, headers = await post(plane, "echo", {"message": "hi"}, headers={"x-request-id": given})
            assert (headers["x-request-id"] == given) is kept

    async def test_equal_instances_take_turns(self, plane: DataPlane) -> None:
        await plane.add(echo(), count=7)
        answered = [(await post(plane, "echo", {"message": "hi"}))[2]["x-swiftclaw-instance"] for _ in range(70)]
        assert {name: answered.count(name) for name in set(answered)} == {f"instance-{n}": 10 for n in range(1, 8)}

    @pytest.mark.parametrize("how", [{"stream": True}, "accept"])
    async def test_a_stream_comes_as_events_and_ends_with_done(self, plane: DataPlane, how: Any) -> None:
        await plane.add(streaming(["one ", "zwei ", "три"]))
        options = {"headers": {"accept": "text/event-stream"}} if how == "accept" else {}
        body = {"message": "go", **(how if isinstance(how, dict) else {})}
        async with plane.client.post("/agents/streamer/messages", json=body, **options) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            text = await response.text()
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert [json.loads(event)["delta"] for event in events[:-1]] == ["one ", "zwei ", "три"]
        assert events[-1] == "[DONE]"

    @pytest.mark.parametrize(
        ("stream", "accept", "events"),
        [
            ({"stream": False}, "text/event-stream", False),
            ({"stream": None}, "text/event-stream", False),
            ({"stream": True}, "application/json", True),
            ({}, "application/json, text/event-stream;q=0.5", False),
        ],
    )
    async def test_the_bodys_stream_wins_over_accept(self, plane: DataPlane, stream: Any, accept: str, events: bool) -> None:
        await plane.add(streaming(["one"]))
        body = {"message": "go", **stream}
        async with plane.client.post("/agents/streamer/messages", json=body, headers={"accept": accept}) as response:
            assert response.content_type == ("text/event-stream" if events else "application/json")

    async def test_a_generators_pieces_are_joined_when_no_stream_is_asked_for(self, plane: DataPlane) -> None:
        await plane.add(streaming(["one ", "two"]))
        assert (await post(plane, "streamer", {"message": "go"}))[1]["reply"] == "one two"


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "kind"),
        [
            ("POST", "/agents/nobody/messages", b'{"message": 1}', 404, "unknown_agent"),
            ("GET", "/agents/echo/messages", None, 405, "method_not_allowed"),
            ("POST", "/agents/echo/messages", b"{broken", 400, "bad_request"),
            ("POST", "/agents/echo/messages", b"\xff\xfe", 400, "bad_request"),
            ("POST", "/agents/echo/messages", b"[1]", 400, "bad_request"),
            ("POST", "/agents/echo/messages", b"{}", 400, "bad_request"),
            ("POST", "/agents/echo/messages", None, 400, "bad_request"),
            ("POST", "/agents/echo/messages", b'{"message": 1, "session_id": 7}', 400, "bad_request"),
            ("POST", "/agents/echo/messages", b'{"message": 1, "stream": "yes"}', 400, "bad_request"),
            ("GET", "/agents/echo/anything", None, 404, "not_found"),
            ("GET", "/nowhere", None, 404, "not_found"),
            ("DELETE", "/-/healthz", None, 405, "method_not_allowed"),
        ],
    )
    async def test_a_bad_request_gets_its_named_error(
        self, plane: DataPlane, method: str, path: str, body: bytes | None, status: int, kind: str
    ) -> None:
        await plane.add(echo())
        async with plane.client.request(method, path, data=body) as response:
            answer = await response.json()
            assert (response.status, answer["error"]["type"]) == (status, kind)
            assert answer["error"]["request_id"] == response.headers["x-request-id"]
            if status == 405:
                assert response.headers["allow"]
        assert plane.active() == 0

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_over_the_limit_is_413(self, plane: DataPlane, chunked: bool) -> None:
        plane.http = {"maxBodyBytes": 200_000}
        await plane.add(echo())

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(300):
                yield b"x" * 1000

        data: Any = pieces() if chunked else b"x" * 300_000
        async with plane.client.post("/agents/echo/messages", data=data) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (413, "payload_too_large")
        await until(lambda: plane.active() == 0)

    async def test_100_kb_of_headers_are_refused(self, plane: DataPlane) -> None:
        await plane.add(echo())
        async with plane.client.get("/agents/echo/x", headers={"x-much": "y" * 100_000}) as response:
            assert response.status == 431

    async def test_without_an_instance_it_is_503_with_a_time_to_ask_again(self, plane: DataPlane) -> None:
        await plane.add(echo())
        plane.mark("echo", "instance-1", "unhealthy")
        status, answer, headers = await post(plane, "echo", {"message": "hi"})
        assert (status, answer["error"]["type"]) == (503, "no_healthy_instance")
        assert int(headers["retry-after"]) >= 1


class TestTheUsersCodeFails:
    async def test_an_exception_is_agent_error_and_tells_the_client_nothing_of_the_code(self, plane: DataPlane) -> None:
        agent = Agent("bad")

        @agent.on_message
        def handle(message: str) -> str:
            raise ValueError("a secret detail")

        await plane.add(agent)
        status, answer, _ = await post(plane, "bad", {"message": "hi"}, headers={"x-request-id": "find-me"})
        assert (status, answer["error"]["type"], answer["error"]["agent"]) == (500, "agent_error", "bad")
        assert answer["error"]["request_id"] == "find-me"
        assert "secret" not in json.dumps(answer) and "Traceback" not in json.dumps(answer)

    async def test_a_stream_that_raises_ends_with_an_error_event_and_without_done(self, plane: DataPlane) -> None:
        await plane.add(streaming(["one"], fails=True))
        async with plane.client.post("/agents/streamer/messages", json={"message": "go", "stream": True}) as response:
            text = await response.text()
        assert 'data: {"delta": "one"}' in text
        assert "event: error" in text and '"agent_error"' in text and "[DONE]" not in text
        await until(lambda: plane.active() == 0)

    async def test_a_stream_that_raises_before_its_first_piece_is_an_ordinary_500(self, plane: DataPlane) -> None:
        await plane.add(streaming([], fails=True))
        status, answer, _ = await post(plane, "streamer", {"message": "go", "stream": True})
        assert (status, answer["error"]["type"]) == (500, "agent_error")


class TestFaults:
    async def test_an_instance_that_refuses_connections_is_skipped_and_reported(self, plane: DataPlane) -> None:
        await plane.add(echo(), count=3)
        await plane.end("echo-instance-2")
        answered = [await post(plane, "echo", {"message": "hi"}) for _ in range(12)]
        assert {status for status, _, _ in answered} == {200}
        assert {headers["x-swiftclaw-instance"] for _, _, headers in answered} == {"instance-1", "instance-3"}
        assert plane.reporter.observation().unreachable == {("echo", "echo-instance-2")}

    async def test_when_all_refuse_the_answer_is_no_healthy_instance_at_once(self, plane: DataPlane) -> None:
        await plane.add(echo(), count=2)
        await plane.end("echo-instance-1")
        await plane.end("echo-instance-2")
        status, answer, headers = await post(plane, "echo", {"message": "hi"})
        assert (status, answer["error"]["type"]) == (503, "no_healthy_instance")
        assert "retry-after" in headers

    async def test_a_closing_instance_refuses_unexecuted_and_another_answers(self, plane: DataPlane) -> None:
        await plane.add(echo(), count=2)
        plane.hosts["echo-instance-1"].advance(Lifecycle.CLOSING)
        for _ in range(4):
            status, _, headers = await post(plane, "echo", {"message": "hi"})
            assert (status, headers["x-swiftclaw-instance"]) == (200, "instance-2")

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_client_that_leaves_cancels_the_work_and_leaves_no_count(self, plane: DataPlane, stream: bool) -> None:
        seen: list[str] = []
        await plane.add(streaming(["one"], forever=True, seen=seen))
        body = {"message": "go", "stream": stream}
        asking = asyncio.ensure_future(plane.client.post("/agents/streamer/messages", json=body))
        await until(lambda: plane.active() == 2)
        if stream:
            (await asking).close()
        else:
            asking.cancel()
        await until(lambda: seen == ["closed"])
        await until(lambda: plane.active() == 0)

    @pytest.mark.parametrize(
        ("method", "retry", "sent"),
        [
            ("POST", {}, 1),
            ("GET", {"attempts": 0}, 1),
            ("PUT", {"attempts": 0}, 1),
            ("DELETE", {"attempts": 0}, 1),
            ("GET", {}, 3),
        ],
    )
    async def test_a_request_that_kills_its_instance_is_sent_on_only_if_it_may_be_repeated(
        self, plane: DataPlane, method: str, retry: dict[str, int], sent: int
    ) -> None:
        """Holds the HTTP client, too, to not sending again by itself."""
        plane.blocks["echo"] = {"retry": retry}
        received: list[int] = []

        async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            received.append(writer.get_extra_info("sockname")[1])
            writer.close()

        await plane.add(echo(), count=3)
        servers = [await asyncio.start_server(die, "127.0.0.1", 0) for _ in range(3)]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        plane.members["echo"] = [replace(m, port=port) for m, port in zip(plane.members["echo"], ports, strict=True)]
        plane.announce()
        async with plane.client.request(method, "/agents/echo/x") as response:
            assert (response.status, (await response.json())["error"]["type"]) == (502, "instance_failed")
            assert response.headers.get("x-swiftclaw-attempts") == (str(sent) if sent > 1 else None)
        assert len(received) == len(set(received)) == sent
        for server in servers:
            server.close()

    async def test_a_body_that_does_not_arrive_is_504(self, plane: DataPlane) -> None:
        plane.blocks["echo"] = {"timeouts": {"request": "300ms"}}
        await plane.add(echo())
        reader, writer = await asyncio.open_connection("127.0.0.1", plane.gateway.port)
        writer.write(b"POST /agents/echo/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        assert b" 504 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()

    async def test_too_slow_is_504_and_the_work_is_cancelled(self, plane: DataPlane) -> None:
        cancelled: list[bool] = []
        agent = Agent("slow")

        @agent.on_message
        async def handle(message: str) -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return "never"

        plane.blocks["slow"] = {"timeouts": {"request": "300ms"}}
        await plane.add(agent)
        status, answer, _ = await post(plane, "slow", {"message": "go"})
        assert (status, answer["error"]["type"]) == (504, "request_timeout")
        await until(lambda: bool(cancelled) and plane.active() == 0)

    async def test_a_stream_may_last_longer_than_the_request_timeout(self, plane: DataPlane) -> None:
        agent = Agent("long")

        @agent.on_message
        async def handle(message: str) -> AsyncIterator[str]:
            for _ in range(5):
                yield "tick"
                await asyncio.sleep(0.1)

        plane.blocks["long"] = {"timeouts": {"request": "300ms"}}
        await plane.add(agent)
        async with plane.client.post("/agents/long/messages", json={"message": "go", "stream": True}) as response:
            assert (await response.text()).endswith("data: [DONE]\n\n")

    async def test_a_stream_that_falls_silent_ends_with_an_error_event(self, plane: DataPlane) -> None:
        agent = Agent("silent")

        @agent.on_message
        async def handle(message: str) -> AsyncIterator[str]:
            yield "tick"
            await asyncio.sleep(60)

        plane.blocks["silent"] = {"timeouts": {"idle": "300ms"}}
        await plane.add(agent)
        async with plane.client.post("/agents/silent/messages", json={"message": "go", "stream": True}) as response:
            text = await response.text()
        assert "event: error" in text and "request_timeout" in text and "[DONE]" not in text
        await until(lambda: plane.active() == 0)


@pytest.fixture
async def mounted(plane: DataPlane) -> DataPlane:
    agent = Agent("web")
    agent.mount(own_app())
    await plane.add(agent)
    return plane


class TestMountedApp:
    async def test_the_path_arrives_untouched(self, mounted: DataPlane) -> None:
        url = URL(f"{mounted.url}/agents/web/a%2Fb/ü%20?x=1&y=%20", encoded=True)
        async with aiohttp.ClientSession() as client, client.get(str(url)) as response:
            seen = await response.json()
        assert seen["path"] == "/agents/web/a%2Fb/%C3%BC%20"
        assert seen["headers"]["x-forwarded-prefix"] == "/agents/web"
        async with mounted.client.put("/agents/web/x?q=1", data=b"abc") as response:
            seen = await response.json()
        assert (seen["method"], seen["query"], seen["bytes"]) == ("PUT", "q=1", 3)

    async def test_internal_headers_neither_leak_nor_can_be_forged(self, mounted: DataPlane) -> None:
        forged = {"x-swiftclaw-session": "forged", "x-forwarded-for": "1.2.3.4", "connection": "x-private", "x-private": "1"}
        async with mounted.client.get("/agents/web/x", headers=forged) as response:
            seen = (await response.json())["headers"]
            assert response.headers.getall("x-swiftclaw-instance") == ["instance-1"]
            assert not {"x-swiftclaw-key", "x-swiftclaw-load"} & {name.lower() for name in response.headers}
        assert not {"x-swiftclaw-key", "x-swiftclaw-session", "x-private"} & set(seen)
        assert seen["x-forwarded-for"] == "127.0.0.1"
        assert seen["x-forwarded-proto"] == "http"
        assert seen["x-forwarded-host"] == seen["host"] == mounted.url.removeprefix("http://")

    async def test_large_bodies_stream_both_ways(self, mounted: DataPlane) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100_000

        async with mounted.client.post("/agents/web/count", data=pieces()) as response:
            assert await response.text() == "2000000"
        async with mounted.client.get("/agents/web/download?mb=3") as response:
            assert len(await response.read()) == 3_000_000

    async def test_an_exception_in_the_app_is_agent_error(self, mounted: DataPlane) -> None:
        async with mounted.client.get("/agents/web/broken") as response:
            text = await response.text()
            assert response.status == 500 and "secret" not in text

    async def test_a_websocket_echoes_and_keeps_protocol_and_close_code(self, mounted: DataPlane) -> None:
        async with mounted.client.ws_connect("/agents/web/ws", protocols=["chat"]) as socket:
            assert socket.protocol == "chat"
            await socket.send_str("hello")
            assert await socket.receive_str() == "echo hello"
            assert mounted.active() == 2
            await socket.send_str("bye")
            await socket.receive()
            assert socket.close_code == 4001
        await until(lambda: mounted.active() == 0)

    async def test_a_websocket_client_that_leaves_leaves_no_count(self, mounted: DataPlane) -> None:
        socket = await mounted.client.ws_connect("/agents/web/ws")
        await until(lambda: mounted.active() == 2)
        await socket.close()
        await until(lambda: mounted.active() == 0)

    async def test_a_closing_instance_passes_its_websockets_on(self, mounted: DataPlane) -> None:
        agent = Agent("web")
        agent.mount(own_app())
        await mounted.add(agent)
        mounted.hosts["web-instance-1"].advance(Lifecycle.CLOSING)
        for _ in range(3):
            async with mounted.client.ws_connect("/agents/web/ws") as socket:
                assert socket._response.headers["x-swiftclaw-instance"] == "instance-2"

    async def test_a_websocket_that_gets_no_handshake_ends_and_leaves_no_count(self, mounted: DataPlane) -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        mounted.blocks["web"] = {"timeouts": {"request": "300ms"}}
        mounted.members["web"] = [replace(mounted.members["web"][0], port=port)]
        mounted.announce()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await mounted.client.ws_connect("/agents/web/ws")
        assert refused.value.status == 504
        await until(lambda: mounted.active() == 0)
        server.close()

    async def test_a_websocket_to_nowhere_is_refused_with_its_status(self, mounted: DataPlane) -> None:
        for path, status in (("/agents/nobody/ws", 404), ("/elsewhere", 404)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await mounted.client.ws_connect(path)
            assert refused.value.status == status


class TestInstancesAcceptOnlyGateways:
    @pytest.mark.parametrize("headers", [{}, {KEY_HEADER.decode(): "wrong"}, {KEY_HEADER.decode(): ""}])
    async def test_without_the_secret_it_is_403(self, plane: DataPlane, headers: dict[str, str]) -> None:
        await plane.add(echo())
        port = plane.members["echo"][0].port
        for path in ("/messages", "/-/watch", "/app/x"):
            url = f"http://127.0.0.1:{port}{path}"
            async with aiohttp.ClientSession() as client, client.post(url, json={}, headers=headers) as response:
                assert response.status == 403


class TestOpenAI:
    @pytest.fixture
    async def client(self, plane: DataPlane) -> AsyncIterator[openai.AsyncOpenAI]:
        await plane.add(echo())
        await plane.add(streaming(["one ", "two"]))
        async with openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    async def test_it_lists_models(self, client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == ["echo", "streamer"]
        assert (await client.models.retrieve("echo")).id == "echo"
        with pytest.raises(openai.NotFoundError, match="nobody"):
            await client.models.retrieve("nobody")

    async def test_it_chats(self, client: openai.AsyncOpenAI) -> None:
        messages: Any = [{"role": "system", "content": "x" * 100_000}, {"role": "user", "content": "hi"}]
        answer = await client.chat.completions.create(model="echo", messages=messages)
        assert answer.choices[0].message.content == "you said hi"
        assert answer.model == "echo"

    async def test_it_streams(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="streamer",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "one two"
        assert chunks[-1].usage is not None

    async def test_its_errors_are_openais(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="echo", messages=[])


class TestInside:
    async def test_a_call_from_inside_is_answered_by_the_same_rules(self, plane: DataPlane) -> None:
        await plane.add(echo())
        call = InProcessClient("echo", {"message": "hi", "session_id": "s"}, {})
        call.send(plane.edge.receive)
        content = await call.whole()
        assert (call.status, json.loads(content)) == (200, {"reply": "you said hi", "session_id": "s"})
        call = InProcessClient("nobody", {"message": "hi"}, {})
        call.send(plane.edge.receive)
        content = await call.whole()
        assert (call.status, json.loads(content)["error"]["type"]) == (404, "unknown_agent")

    async def test_a_stream_from_inside_ends_when_its_reader_leaves(self, plane: DataPlane) -> None:
        seen: list[str] = []
        await plane.add(streaming(["one"], forever=True, seen=seen))
        call = InProcessClient("streamer", {"message": "go", "stream": True}, {})
        call.send(plane.edge.receive)
        got = []
        async for kind, text in events(call):
            got.append((kind, text))
            if len(got) == 3:
                break
        call.leave()
        assert got == [("delta", "one"), ("delta", "tick"), ("delta", "tick")]
        await until(lambda: seen == ["closed"] and plane.active() == 0)


class TestOperatorsPaths:
    async def test_healthz_is_success_only_while_every_agent_can_take_a_request(self, plane: DataPlane) -> None:
        await plane.add(echo())
        async with plane.client.get("/-/healthz") as response:
            assert (response.status, await response.text()) == (200, "success")
        plane.mark("echo", "instance-1", "unhealthy")
        async with plane.client.get("/-/healthz") as response:
            assert response.status == 503

    async def test_routes_names_the_agents(self, plane: DataPlane) -> None:
        await plane.add(echo())
        async with plane.client.get("/-/routes") as response:
            assert await response.json() == {"/agents/echo": "echo"}


async def test_a_request_that_has_ended_is_freed_without_the_garbage_collector(plane: DataPlane) -> None:
    """A gateway that left garbage would stop for it again and again."""
    await plane.add(echo())
    plane.http = {"cors": {"origins": ["https://a.example"]}}
    plane.announce()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            assert (await post(plane, "echo", {"message": "hi"}, headers={"origin": "https://a.example"}))[0] == 200
            assert (await post(plane, "nobody", {"message": "hi"}))[0] == 404
        kept = sum(isinstance(one, ProxiedRequest) for one in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 2, "the newest one of each connection"
