from __future__ import annotations

import asyncio
import contextlib
import json
import os

import pytest
from aiohttp import web

from swiftclaw import Agent
from swiftclaw.models import MODELS, Echo, Function, ModelError, OpenAI, model_for
from swiftclaw.models.endpoint import Endpoint

KEY = "sk-secret-key"


async def collect(pieces):
    return [piece async for piece in pieces]


class ChatServer:
    """A server of the chat API that answers as the test configures it and records the requests."""

    def __init__(self):
        self.url = ""
        self.requests = []
        self.status = 200
        self.content_type = None
        self.chunks = [b"{}"]
        self.pause_s = 0.0
        self.aborts = False
        self.connections = set()
        self.disconnected = asyncio.Event()

    def answers(self, value):
        self.chunks = [json.dumps(value).encode()]

    def replies(self, text):
        self.answers({"choices": [{"message": {"role": "assistant", "content": text}}]})

    async def handle(self, request):
        self.connections.add(request.transport.get_extra_info("peername"))
        self.requests.append((request.path, dict(request.headers), await request.json()))
        response = web.StreamResponse(status=self.status)
        if self.content_type:
            response.content_type = self.content_type
        if self.status in (301, 307):
            response.headers["location"] = "/elsewhere/chat/completions"
        await response.prepare(request)
        try:
            for chunk in self.chunks:
                await response.write(chunk)
                await asyncio.sleep(self.pause_s)
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        if self.aborts:
            request.transport.abort()
        return response


@pytest.fixture
async def server():
    chat = ChatServer()
    app = web.Application()
    app.router.add_post("/{tail:.*}", chat.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    chat.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield chat
    await runner.cleanup()


@pytest.fixture
async def model(server):
    model = OpenAI("small", base_url=server.url, api_key=KEY, timeout_s=2)
    yield model
    await model.close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def event(text=None, **choice):
    delta = {} if text is None else {"content": text}
    chunk = {"choices": [{"index": 0, "delta": delta, **choice}]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


class TestNames:
    @pytest.mark.parametrize("name", ["gpt", "opnai:x", "", ":"])
    def test_an_unknown_model_is_refused_with_the_allowed_ones(self, name):
        with pytest.raises(ValueError, match=r"is not a model \(allowed: echo, openai:<model>, or an async callable\)"):
            model_for(name)

    def test_openai_needs_a_models_name_and_echo_takes_none(self):
        with pytest.raises(ValueError, match="needs a model's name"):
            model_for("openai:")
        with pytest.raises(ValueError, match="write 'echo', not 'echo:loud'"):
            model_for("echo:loud")

    def test_a_value_that_is_neither_name_nor_callable_is_refused(self):
        with pytest.raises(TypeError, match="3 is neither"):
            model_for(3)  # type: ignore[arg-type]

    def test_every_registered_prefix_makes_a_model(self):
        assert set(MODELS) == {"echo", "openai"}
        assert isinstance(model_for("echo"), Echo)
        assert isinstance(model_for("openai:ft:small:org"), OpenAI)


class TestEcho:
    @pytest.mark.parametrize(
        ("message", "answer"),
        [
            ("hello  world ", "hello  world "),
            ("", ""),
            (None, ""),
            ({"a": "é"}, '{"a": "é"}'),
            ([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "hi"),
            ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "a"),
            ([1, 2], "[1, 2]"),
        ],
    )
    async def test_it_replies_with_the_message_and_streams_the_same(self, message, answer):
        assert await Echo().generate(message, temperature=1) == answer
        assert "".join(await collect(Echo().stream(message, temperature=1))) == answer

    async def test_it_streams_word_by_word(self):
        assert await collect(Echo().stream("one two\nthree")) == ["one ", "two\n", "three"]


class TestFunction:
    async def test_a_coroutine_function_answers_and_streams_in_one_piece(self):
        async def shout(message, loud=False):
            return message.upper() if loud else message

        agent = Agent("a", model=shout)
        assert await agent.generate("hi", loud=True) == "HI"
        assert await collect(agent.stream("hi")) == ["hi"]

    async def test_an_async_generator_streams_and_is_joined(self):
        async def spell(message):
            for letter in message:
                yield letter

        agent = Agent("a", model=spell)
        assert await agent.generate("hi") == "hi"
        assert await collect(agent.stream("hi")) == ["h", "i"]

    async def test_it_receives_the_message_unchanged(self):
        async def kind(message):
            return type(message).__name__

        assert await Agent("a", model=kind).generate({"a": 1}) == "dict"

    @pytest.mark.parametrize("answer", ["text", 3, None])
    async def test_a_result_that_is_not_text_is_refused_with_its_type(self, answer):
        async def model(message):
            return answer

        if answer == "text":
            assert await Agent("a", model=model).generate("hi") == "text"
        else:
            with pytest.raises(TypeError, match=f"a model must be async .* it returned {type(answer).__name__}"):
                await Agent("a", model=model).generate("hi")


class TestOpenAIRequests:
    async def test_text_is_sent_as_a_users_message_with_the_key_and_the_options(self, server, model):
        server.replies("hello")
        assert await model.generate("hi", temperature=0) == "hello"
        path, headers, body = server.requests[0]
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert body == {
            "model": "small",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0,
            "stream": False,
        }

    async def test_chat_messages_are_sent_unchanged(self, server, model):
        server.replies("hello")
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
        await model.generate(messages)
        assert server.requests[0][2]["messages"] == messages

    async def test_key_and_address_are_read_from_the_environment_when_first_used(self, server, monkeypatch):
        agent = Agent("a", model="openai:small")
        server.replies("hello")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        assert await agent.generate("hi") == "hello"
        assert server.requests[0][0] == "/v1/chat/completions"
        assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
        await agent.stop()

    async def test_a_custom_server_needs_no_key(self, server):
        server.replies("hello")
        agent = Agent("a", model="openai:small", base_url=server.url)
        assert await agent.generate("hi") == "hello"
        assert "Authorization" not in server.requests[0][1]
        await agent.stop()

    async def test_openai_without_a_key_is_refused_before_anything_is_sent(self):
        with pytest.raises(ModelError, match="no API key: set OPENAI_API_KEY"):
            await OpenAI("small").generate("hi")

    async def test_one_connection_serves_many_calls_and_stop_closes_it(self, server):
        server.replies("hello")
        agent = Agent("a", model="openai:small", base_url=server.url)
        for _ in range(3):
            await agent.generate("hi")
        assert len(server.connections) == 1
        await agent.stop()
        await agent.generate("hi")
        assert len(server.connections) == 2
        await agent.stop()

    def test_each_event_loop_has_its_own_session_and_those_of_closed_loops_are_dropped(self):
        model = OpenAI("small", base_url="http://127.0.0.1:9/v1")

        async def refused():
            with pytest.raises(ModelError, match="Cannot connect"):
                await model.generate("hi")

        async def refused_and_closed():
            await refused()
            assert len(model._sessions) == 1
            await model.close()

        asyncio.run(refused())
        asyncio.run(refused_and_closed())
        assert not model._sessions


class TestOpenAIErrors:
    @pytest.mark.parametrize(
        ("status", "body", "text"),
        [
            (401, b'{"error": {"message": "bad key", "type": "t"}}', "401: bad key"),
            (404, b'{"error": "no such model"}', "404: no such model"),
            (422, b'{"detail": [{"loc": "x"}]}', '422: [{"loc": "x"}]'),
            (429, b'{"message": "slow down"}', "429: slow down"),
            (500, b"<html>oops</html>", "500: <html>oops</html>"),
            (502, b"", "502: Bad Gateway"),
            (503, b"\xff" * 1000, "503: " + "\ufffd" * 300),
            (307, b"", "307: Temporary Redirect"),
        ],
    )
    async def test_an_error_response_becomes_an_error_with_its_status_and_message(self, server, model, status, body, text):
        server.status, server.chunks = status, [body]
        for answer in (model.generate("hi"), collect(model.stream("hi"))):
            with pytest.raises(ModelError) as failure:
                await answer
            assert str(failure.value) == text
            assert failure.value.status == status
        assert len(server.requests) == 2, "a redirect would take the key elsewhere"

    @pytest.mark.parametrize("status", [200, 401])
    async def test_the_key_is_never_repeated(self, server, model, status):
        server.status = status
        server.answers({"error": {"message": f"Incorrect API key provided: {KEY}."}})
        with pytest.raises(ModelError, match=r"provided: \*\*\*\.") as failure:
            await model.generate("hi")
        assert KEY not in repr(failure.value) and KEY not in repr(model)

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b"not json", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[1]", "not a JSON object"),
            (b'{"a": NaN}', "not JSON"),
            (b'{"a": ' * 100_000, "not JSON"),
            (b"{}", "small: the response has no choices"),
            (b'{"choices": []}', "small: the response has no choices"),
            (b'{"choices": [3]}', "small: the response has a choice without a message"),
            (b'{"choices": [{"message": null}]}', "small: the response has a choice without a message"),
        ],
    )
    async def test_a_response_of_another_shape_is_an_error(self, server, model, body, problem):
        server.chunks = [body]
        with pytest.raises(ModelError, match=problem):
            await model.generate("hi")

    async def test_silence_is_an_error_after_the_timeout(self, server):
        server.pause_s, server.chunks = 60, [b" ", b" "]
        model = OpenAI("small", base_url=server.url, timeout_s=0.05)
        with pytest.raises(ModelError, match=r"[Tt]imeout"):
            await model.generate("hi")
        await model.close()

    async def test_a_response_that_ends_early_is_an_error(self, server, model):
        server.aborts, server.chunks = True, [b'{"choices": ']
        with pytest.raises(ModelError, match="small: "):
            await model.generate("hi")


class TestOpenAIStreams:
    async def test_pieces_arrive_as_they_are_sent(self, server, model):
        server.chunks = [event("he"), event("llo"), b"data: [DONE]\n\n"]
        assert await collect(model.stream("hi")) == ["he", "llo"]
        assert server.requests[0][2]["stream"] is True

    @pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
    async def test_bytes_may_be_cut_anywhere_even_within_a_character(self, server, model, newline):
        whole = b"".join([event("naïve "), event("日本語 🦀"), b"data: [DONE]\n\n"]).replace(b"\n", newline)
        server.chunks = [whole[at : at + 1] for at in range(len(whole))]
        server.pause_s = 0.0001
        assert "".join(await collect(model.stream("hi"))) == "naïve 日本語 🦀"

    async def test_comments_empty_deltas_and_usage_are_skipped(self, server, model):
        usage = b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'
        server.chunks = [
            b": keep-alive\n\nevent: message\n",
            event(""),
            event("a", finish_reason=None),
            event(None, finish_reason="stop"),
            usage,
            b"data:[DONE]",
        ]
        assert await collect(model.stream("hi")) == ["a"]

    async def test_a_finish_reason_ends_the_stream_without_done(self, server, model):
        server.chunks = [event("a"), event(None, finish_reason="stop")]
        assert await collect(model.stream("hi")) == ["a"]

    async def test_an_event_may_have_several_lines_of_data(self, server, model):
        server.chunks = [b'data: {"choices":\ndata: [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n']
        assert await collect(model.stream("hi")) == ["a"]

    @pytest.mark.parametrize("aborts", [True, False])
    async def test_a_stream_that_ends_early_is_an_error_after_its_pieces(self, server, model, aborts):
        server.aborts, server.pause_s = aborts, 0.02
        server.chunks = [event("he"), event("llo"), b'data: {"choi']
        pieces = []
        with pytest.raises(ModelError):
            async for piece in model.stream("hi"):
                pieces.append(piece)
        assert pieces == ["he", "llo"]

    async def test_an_error_within_the_stream_is_raised(self, server, model):
        server.chunks = [event("he"), b'data: {"error": {"message": "overloaded"}}\n\n']
        with pytest.raises(ModelError, match="overloaded"):
            await collect(model.stream("hi"))

    async def test_wrong_json_within_the_stream_is_raised(self, server, model):
        server.chunks = [event("he"), b"data: {oops\n\n"]
        with pytest.raises(ModelError, match="not JSON"):
            await collect(model.stream("hi"))

    async def test_closing_the_stream_closes_the_connection(self, server, model):
        server.chunks, server.pause_s = [event("a")] * 1000, 0.01
        async with contextlib.aclosing(model.stream("hi")) as pieces:
            assert await anext(pieces) == "a"
        await asyncio.wait_for(server.disconnected.wait(), 5)


class TestEnvironment:
    """What the `openai` package reads from the environment, read at each call."""

    async def test_organization_project_and_custom_headers_are_sent(self, server, monkeypatch):
        server.replies("hello")
        monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: a: b\nbroken\nAuthorization: Basic xyz")
        model = OpenAI("small", base_url=server.url, api_key=f" {KEY}\n")
        await model.generate("hi")
        await model.close()
        headers = server.requests[0][1]
        assert (headers["OpenAI-Organization"], headers["OpenAI-Project"], headers["X-Team"]) == ("org-1", "proj-1", "a: b")
        assert headers["Authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(
        ("environment", "through"),
        [
            ({"HTTP_PROXY": "{proxy}"}, True),
            ({"http_proxy": "{proxy}"}, True),
            ({"ALL_PROXY": "{proxy}"}, True),
            ({"HTTPS_PROXY": "{proxy}"}, False),
            ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "elsewhere,.test"}, False),
            ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "*"}, False),
            ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "other.example"}, True),
        ],
    )
    def test_a_proxy_is_used_unless_the_host_is_excepted(self, monkeypatch, environment, through):
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(proxy="proxy.example:3128"))
        expected = "http://proxy.example:3128" if through else None
        assert Endpoint.resolve("http://model.test:8000/v1", None).proxy == expected

    async def test_the_request_really_passes_through_the_proxy(self, server, monkeypatch):
        server.replies("hello")
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1").replace("http://", "http://me:secret@"))
        model = OpenAI("small", base_url="http://model.test/v1")
        assert await model.generate("hi") == "hello"
        await model.close()
        headers = server.requests[0][1]
        assert headers["Host"] == "model.test" and headers["Proxy-Authorization"].startswith("Basic ")

    async def test_an_unknown_kind_of_proxy_is_named(self, monkeypatch):
        monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:9")
        with pytest.raises(ModelError, match="the environment configures a socks5 proxy") as failure:
            await OpenAI("small", base_url="http://model.test/v1").generate("hi")
        assert "secret" not in str(failure.value)


class TestWholeAnswers:
    async def test_complete_returns_the_servers_own_object(self, server, model):
        whole = {"id": "x", "choices": [{"message": {"content": None, "tool_calls": [{"id": "t"}]}}], "usage": {"a": 1}}
        server.answers(whole)
        assert await model.complete([{"role": "user", "content": "hi"}], tools=[{}]) == whole
        assert server.requests[0][2]["tools"] == [{}]

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ({"content": None, "tool_calls": [{"id": "t"}]}, ""),
            ({"content": None}, ""),
            ({"content": None, "refusal": "I will not"}, "I will not"),
            ({"content": [{"type": "text", "text": "a"}, {"type": "thinking"}]}, "a"),
        ],
    )
    async def test_an_answer_without_text_is_an_answer(self, server, model, message, text):
        server.answers({"choices": [{"message": message}]})
        assert await model.generate("hi") == text

    async def test_an_agent_takes_a_conversation_or_a_message(self, server):
        server.replies("hello")
        agent = Agent("a", model="openai:small", base_url=server.url)
        conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        assert await agent.generate(messages=conversation, temperature=0) == "hello"
        assert (await agent.complete(messages=conversation))["choices"][0]["message"]["content"] == "hello"
        assert [body["messages"] for _, _, body in server.requests] == [conversation] * 2
        with pytest.raises(TypeError, match="either a message or messages"):
            await agent.generate()
        with pytest.raises(TypeError, match="either a message or messages"):
            await agent.generate("a", messages=conversation)
        await agent.stop()

    async def test_a_model_that_only_gives_text_completes_too(self):
        completion = await Agent("a").complete("two words")
        assert completion["choices"][0]["message"]["content"] == "two words"

    async def test_a_server_that_does_not_stream_is_read_as_a_stream(self, server, model):
        server.content_type = "application/json"
        message = {"role": "assistant", "content": "hello"}
        server.answers({"id": "x", "choices": [{"message": message, "finish_reason": "stop"}]})
        assert await collect(model.stream("hi")) == ["hello"]

    async def test_one_choice_of_several_that_is_unfinished_is_an_error(self, server, model):
        second = {"choices": [{"index": 1, "delta": {"content": "x"}}]}
        server.chunks = [event("a", finish_reason="stop"), f"data: {json.dumps(second)}\n\n".encode()]
        with pytest.raises(ModelError, match="ended before the reply was complete"):
            await collect(model.stream("hi"))


class TestBounds:
    async def test_a_response_that_never_ends_is_an_error(self, server, model, monkeypatch):
        monkeypatch.setattr("swiftclaw.models.openai._LARGEST", 10_000)
        server.chunks = [b"x" * 1000] * 50
        with pytest.raises(ModelError, match="larger than 10000 bytes"):
            await model.generate("hi")
        with pytest.raises(ModelError, match="an event of the stream is larger than 10000 bytes"):
            await collect(model.stream("hi"))

    @pytest.mark.parametrize("chunk", [b'data: {"choices": [3]}\n\n', b'data: {"choices": 3}\n\n', b"data: 7\n\n"])
    async def test_a_chunk_of_another_shape_is_an_error(self, server, model, chunk):
        server.chunks = [chunk]
        with pytest.raises(ModelError, match=r"choices that are not objects|not a JSON object"):
            await collect(model.stream("hi"))


class TestFunctionOptions:
    async def test_a_parameter_named_messages_gets_the_conversation(self):
        async def model(*, messages, temperature=1):
            return f"{len(messages)} at {temperature}"

        conversation = [{"role": "user", "content": "a"}] * 3
        assert await Agent("a", model=model).generate(messages=conversation, temperature=0) == "3 at 0"
        assert await Agent("a", model=model).generate("hi") == "1 at 1"

    def test_of_a_clients_options_it_accepts_those_that_it_names(self):
        async def some(message, temperature=1): ...
        async def every(message, **options): ...

        options = {"temperature": 0, "tools": [], "message": "x"}
        assert Function(some).accepted(options) == {"temperature": 0}
        assert Function(every).accepted(options) == options
