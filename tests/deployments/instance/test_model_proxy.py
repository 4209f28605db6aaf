"""An agent without a handler is a faithful proxy of its model server: only the model's name and request ids differ."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from deployments.proxy.in_process import InProcessClient, events
from swiftclaw import Agent
from swiftclaw.models import ModelError
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, until
from tests.deployments.model_server import ModelServer, serving

KEY = "sk-live-51f0c9a7d2"
TURNS: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "my name is Ada"},
    {"role": "assistant", "content": "Hello Ada"},
    {"role": "user", "content": "what is my name?"},
]
IMAGE: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}],
    }
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALLED: list[Any] = [
    *TURNS,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "t", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "t", "content": "sunny"},
]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
REQUESTS: dict[str, dict[str, Any]] = {
    "a conversation": {},
    "an image": {"messages": IMAGE},
    "a tool's result": {"messages": CALLED},
    "system only": {"messages": TURNS[:1]},
    "developer": {"messages": [{"role": "developer", "content": "be brief"}, *TURNS[1:]]},
    "assistant last": {"messages": TURNS[:3]},
    "sampling": {"temperature": 0.2, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": -1, "seed": 7},
    "limits": {"max_tokens": 5, "stop": ["\n", "END"]},
    "max_completion_tokens": {"max_completion_tokens": 5, "reasoning_effort": "low"},
    "several choices": {"n": 3},
    "log probabilities": {"logprobs": True, "top_logprobs": 2, "logit_bias": {"7": -100}},
    "tools": {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    "a chosen tool": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    "a schema": {"response_format": SCHEMA},
    "a refusal": {"seed": 13},
    "metadata and user": {"metadata": {"team": "blue"}, "user": "ada", "store": True},
    "fields of one vendor": {"extra_body": {"top_k": 3, "guided_regex": "a+", "chat_template_kwargs": {"thinking": False}}},
    "unusual text": {"messages": [{"role": "user", "content": "\x00 \u2028 🦀 \"quoted\" </s>", "name": "ada"}]},
    "a large message": {"messages": [{"role": "user", "content": "word " * 100_000}]},
    "an invalid option": {"temperature": 3},
    "usage in the stream": {"stream_options": {"include_usage": True}},
}  # fmt: skip


@dataclass
class Both:
    """The same model server, asked directly and through a data plane by the `openai` package."""

    server: ModelServer
    plane: DataPlane
    direct: openai.AsyncOpenAI
    through: openai.AsyncOpenAI


@pytest.fixture
async def both(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Both]:
    async with serving() as server:
        agent = Agent("proxy", model="openai:small", base_url=server.url, api_key=KEY)
        await plane.add(agent, count=2)
        direct = openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0)
        through = openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0)
        yield Both(server, plane, direct, through)
        await direct.close()
        await through.close()
        await agent.stop()


async def outcome(client: openai.AsyncOpenAI, model: str, request: dict[str, Any]) -> Any:
    """All that a program sees of the answer, but for the model's name, which is the agent's."""
    try:
        answer = await client.chat.completions.create(**{"model": model, "messages": TURNS, **request})
        if not request.get("stream"):
            assert answer.model == model
            return {**answer.model_dump(exclude_unset=True), "model": "-"}
        chunks = [chunk async for chunk in answer]
        assert {chunk.model for chunk in chunks} == {model}
        return [{**chunk.model_dump(exclude_unset=True), "model": "-"} for chunk in chunks]
    except openai.APIStatusError as error:
        retry_after = error.response.headers.get("retry-after")
        return error.status_code, type(error).__name__, error.type, error.code, error.param, _words(error), retry_after


def _words(error: openai.APIError) -> object:
    return error.body.get("message") if isinstance(error.body, dict) else error.body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_the_answer_is_that_of_the_model_server(both: Both, name: str, stream: bool) -> None:
    request = {**REQUESTS[name], **({"stream": True} if stream else {})}
    if not stream:
        request.pop("stream_options", None)
    assert await outcome(both.through, "proxy", request) == await outcome(both.direct, "small", request)
    through, direct = both.server.requests
    through.setdefault("stream", False)
    direct.setdefault("stream", False)
    assert through == direct


REFUSALS: list[tuple[int, dict[str, str], Any]] = [
    (400, {}, {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}),
    (404, {}, {"message": "no model small", "type": "NotFoundError", "param": None, "code": 404}),
    (413, {}, {"message": "too large", "type": "invalid_request_error", "param": None, "code": None}),
    (422, {}, {"message": "unprocessable", "type": "invalid_request_error", "param": "tools", "code": "x"}),
    (429, {"retry-after": "7"}, {"message": "slow down", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}),
    (409, {}, {"message": "conflict", "type": "conflict", "param": None, "code": None}),
    (403, {}, {"message": "flagged", "type": "moderation", "param": None, "code": "flagged"}),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("status", "headers", "error"), REFUSALS, ids=[str(row[0]) for row in REFUSALS])
async def test_a_refusal_is_that_of_the_model_server(
    both: Both, status: int, headers: dict[str, str], error: Any, stream: bool
) -> None:
    both.server.script = [(status, headers, json.dumps({"error": error}).encode())] * 2
    through = await outcome(both.through, "proxy", {"stream": stream})
    assert through == await outcome(both.direct, "small", {"stream": stream})
    assert through[0] == status


class TestRefusals:
    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 451])
    @pytest.mark.parametrize("handled", [False, True], ids=["by the model", "in a handler"])
    async def test_they_keep_their_status_and_count_for_no_breaker(self, plane: DataPlane, status: int, handled: bool) -> None:
        async with serving() as server:
            agent = Agent("proxy", model="openai:small", base_url=server.url)
            if handled:
                agent.on_message(lambda message: agent.generate(message))
            await plane.add(agent, count=2)
            server.script = [(status, {"retry-after": "1.2"}, b'{"error": {"message": "no"}}')] * 24
            for body in ({"message": "x"}, {"message": "x", "stream": True}) * 12:
                answered, answer, headers = await post(plane, "proxy", body)
                assert (answered, answer["error"]["type"]) == (status, "model_refused")
                assert headers["retry-after"] == "2"
                assert answer["error"]["request_id"] == headers["x-request-id"]
            assert (await post(plane, "proxy", {"message": "fine"}))[0] == 200
            pool = plane.agents.pools["proxy"]
            assert {backend.breaker.state for backend in pool.backends() if backend.breaker} == {"closed"}
            await agent.stop()

    @pytest.mark.parametrize("status", [401, 403])
    async def test_nothing_of_the_operators_key_reaches_the_client(self, both: Both, status: int) -> None:
        words = f"Incorrect API key provided: {KEY} ({KEY[:6]}***{KEY[-4:]}), see sk-proj-abcdef123."
        both.server.script = [(status, {}, json.dumps({"error": {"message": words}}).encode())] * 3
        _, answer, _ = await post(both.plane, "proxy", {"message": "x"})
        with pytest.raises(openai.APIStatusError) as failure:
            await both.through.chat.completions.create(model="proxy", messages=TURNS)
        ids = re.compile(r"(?<=request_id['\"]: ['\"])[0-9a-f]{32}")  # drawn at random, so four of its digits may be the key's
        for shown in (ids.sub("", json.dumps(answer)), ids.sub("", str(failure.value.body))):
            assert "request_id" in shown
            assert KEY[:6] not in shown and KEY[-4:] not in shown and "abcdef" not in shown
        assert "credentials" in answer["error"]["message"] or "Incorrect API key provided: ***" in answer["error"]["message"]

    async def test_a_date_is_a_retry_after_too(self, both: Both) -> None:
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
        both.server.script = [(429, {"retry-after": date}, b""), (429, {"retry-after-ms": "2500"}, b""), (429, {}, b"")]
        times = [(await post(both.plane, "proxy", {"message": "x"}))[2].get("retry-after") for _ in range(3)]
        assert times[0] is not None and 95 <= int(times[0]) <= 100
        assert times[1:] == ["3", None]

    @pytest.mark.parametrize(
        ("status", "answered", "kind"),
        [(400, 400, "model_refused"), (429, 429, "model_refused"), (500, 502, "model_error"), (200, 500, "agent_error")],
    )
    async def test_a_client_package_in_a_handler_is_treated_alike(
        self, plane: DataPlane, status: int, answered: int, kind: str
    ) -> None:
        async with serving() as server, openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
            agent = Agent("own")

            @agent.on_message
            async def handle(messages: Any) -> None:
                await client.chat.completions.create(model="small", messages=messages)
                raise ValueError("the agent's own")

            await plane.add(agent)
            error = {"message": f"no, {KEY}", "type": "t", "code": "context_length_exceeded", "param": None}
            server.script = [(status, {"retry-after": "3"}, json.dumps({"error": error}).encode())] * 2
            got, answer, headers = await post(plane, "own", {"message": "x"})
            assert (got, answer["error"]["type"]) == (answered, kind)
            assert KEY not in str(answer) and (status == 200 or headers["retry-after"] == "3")
            async with plane.client.post("/v1/chat/completions", json={"model": "own", "messages": TURNS}) as response:
                code = (await response.json())["error"]["code"]
            assert code == ("context_length_exceeded" if kind == "model_refused" else kind)

    async def test_a_client_package_without_a_server_is_a_failure_of_the_model(self, plane: DataPlane) -> None:
        async with openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0) as client:
            agent = Agent("own")
            agent.on_message(lambda messages: client.chat.completions.create(model="small", messages=messages))
            await plane.add(agent)
            assert [await post(plane, "own", {"message": "x"})][0][1]["error"]["type"] == "model_error"

    async def test_a_handler_may_catch_them(self, plane: DataPlane) -> None:
        async with serving() as server:
            agent = Agent("proxy", model="openai:small", base_url=server.url)

            @agent.on_message
            async def handle(message: str) -> str:
                try:
                    return await agent.generate(message)
                except ModelError as error:
                    return f"{error.status} {error.message}"

            await plane.add(agent)
            server.script = [(429, {}, b'{"error": {"message": "slow down"}}')]
            assert (await post(plane, "proxy", {"message": "x"}))[1]["reply"] == "429 slow down"
            await agent.stop()


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "body", "answered", "kind"),
        [
            (500, b'{"error": {"message": "out of memory"}}', 502, "model_error"),
            (503, b"<html>busy</html>", 502, "model_error"),
            (529, b"", 502, "model_error"),
            (504, b"", 504, "model_timeout"),
            (302, b"", 502, "model_error"),
            (407, b"", 502, "model_error"),
            (200, b"{not json", 502, "model_error"),
            (200, b'{"choices": []}', 502, "model_error"),
            (200, b'{"error": {"message": "boom"}}', 502, "model_error"),
        ],
    )
    async def test_they_are_named_and_count_for_the_breaker(
        self, both: Both, status: int, body: bytes, answered: int, kind: str
    ) -> None:
        both.server.script = [(status, {"location": "/"}, body)] * 12
        seen = [await post(both.plane, "proxy", {"message": "x"}) for _ in range(11)]
        assert [(s, a["error"]["type"]) for s, a, _ in seen] == [(answered, kind)] * 10 + [(503, "circuit_open")]
        assert "<html>" not in str(seen[0][1])

    async def test_no_server_is_named_without_its_address(self, plane: DataPlane) -> None:
        agent = Agent("proxy", model="openai:small", base_url="http://127.0.0.1:9/v1")
        await plane.add(agent)
        status, answer, _ = await post(plane, "proxy", {"message": "x"})
        assert (status, answer["error"]["type"]) == (502, "model_error")
        assert answer["error"]["message"] == "the model server cannot be reached"
        await agent.stop()

    @pytest.mark.parametrize("breaks_after", [1, 2])
    async def test_a_stream_that_breaks_ends_with_an_error_in_openais_shape(self, both: Both, breaks_after: int) -> None:
        both.server.breaks_after, both.server.pause_s = breaks_after, 0.05
        stream = await both.through.chat.completions.create(model="proxy", messages=TURNS, stream=True)
        with pytest.raises(openai.APIError) as failure:
            _ = [chunk async for chunk in stream]
        error = failure.value
        assert (error.type, error.code, error.param) == ("model_error", "model_error", None)
        assert isinstance(error.body, dict) and error.body["request_id"]

    async def test_an_error_within_a_stream_keeps_the_servers_words(self, both: Both) -> None:
        error = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded", "param": "messages"}
        chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
        content = f"data: {json.dumps(chunk)}\n\ndata: {json.dumps({'error': {**error, 'code': 400}})}\n\n".encode()
        both.server.script = [(200, {"content-type": "text/event-stream"}, content)]
        stream = await both.through.chat.completions.create(model="proxy", messages=TURNS, stream=True)
        with pytest.raises(openai.APIError) as failure:
            _ = [chunk async for chunk in stream]
        assert (failure.value.message, failure.value.type, failure.value.param) == ("too long", error["type"], "messages")

    async def test_a_group_of_model_errors_is_one(self, plane: DataPlane) -> None:
        async with serving() as server:
            agent = Agent("proxy", model="openai:small", base_url=server.url)

            class Group(Exception):
                def __init__(self, *exceptions: Exception) -> None:
                    self.exceptions = exceptions

            @agent.on_message
            async def handle(message: str) -> None:
                answers = await asyncio.gather(*(agent.generate(message) for _ in range(2)), return_exceptions=True)
                raise Group(*[error for error in answers if isinstance(error, Exception)])

            await plane.add(agent)
            server.script = [(429, {}, b""), (400, {}, b"")]
            assert (await post(plane, "proxy", {"message": "x"}))[0] == 429
            await agent.stop()


class TestStreams:
    @pytest.mark.parametrize("path", ["chat", "messages"])
    async def test_they_arrive_as_the_model_makes_them(self, both: Both, path: str) -> None:
        both.server.pause_s = 0.2
        began, at = time.monotonic(), []
        if path == "chat":
            async for chunk in await both.through.chat.completions.create(model="proxy", messages=TURNS, stream=True):
                if chunk.choices and chunk.choices[0].delta.content:
                    at.append(time.monotonic() - began)
        else:
            async with both.plane.client.post("/agents/proxy/messages", json={"message": TURNS, "stream": True}) as response:
                async for line in response.content:
                    if line.startswith(b'data: {"delta"'):
                        at.append(time.monotonic() - began)
        assert len(at) == 3 and at[2] - at[0] > 0.3
        assert both.server.requests[0]["stream"] is True
        assert both.server.requests[0]["messages"] == TURNS

    async def test_a_client_that_leaves_ends_the_models_work(self, both: Both) -> None:
        both.server.pause_s = 0.05
        async with both.plane.client.post("/agents/proxy/messages", json={"message": "x", "stream": True}) as response:
            await response.content.readline()
        await until(lambda: both.plane.active() == 0)
        await asyncio.wait_for(both.server.gone.wait(), 5)

    @pytest.mark.parametrize(
        "delta",
        [
            {"reasoning": "hm"},
            {"reasoning_content": "hm", "content": None},
            {"reasoning_items": [{"encrypted_content": "x"}], "content": ""},
            {"tool_calls": [{"id": "t", "function": {"name": "look", "arguments": "{}"}}]},
            {"audio": {"data": "AAAA"}, "annotations": [{"type": "url_citation"}]},
        ],
    )
    async def test_fields_that_only_the_server_knows_pass(self, both: Both, delta: dict[str, Any]) -> None:
        chunks: list[dict[str, Any]] = [
            {"id": "x", "choices": [{"index": 0, "delta": delta, "token_ids": [1]}], "provider": "p"},
            {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "end"}]},
            {"id": "x", "choices": None, "usage": {"cost": 0.1}},
        ]
        content = b": PROCESSING\n\n" + b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)
        both.server.script = [(200, {"content-type": "text/event-stream"}, content)]  # and without [DONE]
        request = {"model": "proxy", "messages": TURNS, "stream": True}
        async with both.plane.client.post("/v1/chat/completions", json=request) as response:
            *events, done, _ = (await response.text()).split("\n\n")
        assert [json.loads(event.removeprefix("data: ")) for event in events] == [
            {**chunk, "model": "proxy"} for chunk in chunks
        ]
        assert done == "data: [DONE]"

    @pytest.mark.parametrize("last", [None, {"choices": [], "usage": {"prompt_tokens": 1}}], ids=["cut", "with usage"])
    async def test_a_stream_without_a_reason_and_without_done_is_no_success(self, both: Both, last: Any) -> None:
        chunks = [{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}, *([last] if last else [])]
        content = b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)
        both.server.script = [(200, {"content-type": "text/event-stream"}, content)]
        stream = await both.through.chat.completions.create(model="proxy", messages=TURNS, stream=True)
        with pytest.raises(openai.APIError, match="the stream ended before the reply was complete"):
            _ = [chunk async for chunk in stream]


class TestMessages:
    async def test_a_text_and_a_conversation_reach_the_model(self, both: Both) -> None:
        for message, sent in (("hi", [{"role": "user", "content": "hi"}]), (TURNS, TURNS), (IMAGE, IMAGE)):
            assert (await post(both.plane, "proxy", {"message": message}))[1]["reply"] == "so many words"
            assert both.server.requests[-1]["messages"] == sent

    async def test_an_answer_of_tool_calls_is_the_reply(self, both: Both) -> None:
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}
        both.server.script = [(200, {}, json.dumps({"choices": [{"message": message}]}).encode())]
        assert (await post(both.plane, "proxy", {"message": "hi"}))[1]["reply"] == message

    async def test_a_call_from_inside_the_cluster_does_the_same(self, both: Both) -> None:
        call = InProcessClient("proxy", {"message": TURNS, "stream": True}, {})
        call.send(both.plane.edge.receive)
        assert [event async for event in events(call)] == [("delta", word) for word in ("so", "many", "words")]
        assert both.server.requests[0]["messages"] == TURNS


class TestHandlers:
    async def test_they_get_the_conversation(self, plane: DataPlane) -> None:
        agent = Agent("a")

        @agent.on_message
        async def handle(message: str, messages: Any, request: Any) -> str:
            assert request.messages == messages
            return json.dumps([message, len(messages)])

        await plane.add(agent)
        async with openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0) as client:
            answer = await client.chat.completions.create(model="a", messages=TURNS)
            assert json.loads(answer.choices[0].message.content or "") == ["what is my name?", 4]
            with pytest.raises(openai.BadRequestError) as failure:
                await client.chat.completions.create(model="a", messages=TURNS, n=2)
            assert failure.value.param == "n"
        assert json.loads((await post(plane, "a", {"message": "hi"}))[1]["reply"]) == ["hi", 1]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_completion_that_a_handler_returns_is_the_answer(self, plane: DataPlane, stream: bool) -> None:
        async with serving() as server:
            agent = Agent("a", model="openai:small", base_url=server.url)
            agent.on_message(lambda messages: agent.complete(messages=messages, tools=[TOOL]))
            await plane.add(agent)
            async with openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0) as client:
                request: Any = {"model": "a", "messages": TURNS, "stream": stream}
                answer = await client.chat.completions.create(**request)
                if stream:
                    calls = [c.choices[0].delta.tool_calls async for c in answer if c.choices and c.choices[0].delta.tool_calls]
                    assert calls[0][0].function.name == "look"
                else:
                    assert answer.choices[0].message.tool_calls[0].function.name == "look"
                    assert answer.usage.total_tokens == 12
            await agent.stop()

    async def test_an_echo_and_a_function_take_any_roles(self, plane: DataPlane) -> None:
        async def spell(message: object, temperature: float = 1) -> AsyncIterator[str]:
            yield f"{len(message) if isinstance(message, list) else message} at {temperature}"

        await plane.add(Agent("echo"))
        await plane.add(Agent("function", model=spell))
        async with openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0) as client:
            messages: Any
            for messages in (TURNS[:1], TURNS[:3], [{"role": "developer", "content": "d"}], CALLED):
                answer = await client.chat.completions.create(model="echo", messages=messages, temperature=0)
                assert answer.choices[0].message.content == messages[-1]["content"]
            for messages, text in ((TURNS, "4 at 0.0"), ([{"role": "user", "content": "hi"}], "hi at 0.0")):
                answer = await client.chat.completions.create(model="function", messages=messages, temperature=0.0, seed=1)
                assert answer.choices[0].message.content == text


class TestErrorsOfTheOpenAIClient:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_each_has_type_code_and_param(self, plane: DataPlane, stream: bool) -> None:
        agent = Agent("broken")

        @agent.on_message
        async def handle(message: str) -> AsyncIterator[str]:
            if message != "at once":
                yield "a"
            raise ValueError("no")

        await plane.add(agent)
        async with openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0) as client:
            for message in ("at once", "later"):
                with pytest.raises(openai.APIError) as failure:
                    request: Any = {"model": "broken", "messages": [{"role": "user", "content": message}], "stream": stream}
                    answer = await client.chat.completions.create(**request)
                    _ = [chunk async for chunk in answer]
                assert (failure.value.type, failure.value.code, failure.value.param) == ("agent_error", "agent_error", None)

    async def test_an_instance_that_dies_within_a_stream_has_the_shape_too(self, plane: DataPlane) -> None:
        agent = Agent("a")

        @agent.on_message
        async def handle() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(60)

        await plane.add(agent)
        plane.blocks = {"a": {"timeouts": {"idle": "200ms"}}}
        plane.announce()
        async with openai.AsyncOpenAI(base_url=f"{plane.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(model="a", messages=TURNS, stream=True)
            with pytest.raises(openai.APIError) as failure:
                _ = [chunk async for chunk in stream]
        assert (failure.value.type, failure.value.code) == ("request_timeout", "request_timeout")

    @pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/embeddings", "/v1/models/nobody"])
    async def test_every_path_under_v1_has_the_shape(self, plane: DataPlane, path: str) -> None:
        async with plane.client.get(path) as response:
            assert response.status == 404
            assert {"message", "type", "param", "code"} <= set((await response.json())["error"])
