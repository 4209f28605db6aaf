from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.request.openai import (
    BadField,
    ChatRequest,
    Chunks,
    check_one_answer,
    completion,
    content_text,
    error_body,
    last_user_text,
    model,
    model_list,
)
from policies.errors import BadRequest, RateLimited, UnknownAgent

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
HEAD: dict[str, Any] = {"id": "chatcmpl-1", "created": 1700000000, "model": "support", "messages": MESSAGES}


def asked(**changes):
    return ChatRequest.parse({"model": "support", "messages": MESSAGES, **changes})


class TestRequests:
    def test_the_least_request_has_a_model_and_messages(self):
        assert asked() == ChatRequest("support", MESSAGES)

    def test_what_is_of_no_use_here_is_let_through(self):
        nothing = dict.fromkeys(("n", "stream", "stream_options", "metadata", "user"))
        assert asked(tools=[{}], temperature=2, n=1, response_format={}) == asked(**nothing) == asked()

    @pytest.mark.parametrize("messages", [MESSAGES[:1], [{"role": "developer"}], [{"role": "assistant", "content": "so"}]])
    def test_no_role_is_required(self, messages):
        assert asked(messages=messages).messages == messages

    def test_the_models_options_are_all_but_what_swiftclaw_alone_knows(self):
        known = {"temperature": 0, "tools": [{}], "user": "u", "n": 3, "stream_options": {"include_usage": True}}
        assert asked(**known, stream=True, metadata={"session_id": "s", "user_id": "u"}).options == known
        assert asked(metadata={"session_id": "s", "a": "b"}).options == {"metadata": {"a": "b"}}

    @pytest.mark.parametrize(("n", "shown"), [(2, "2"), (0, "0"), (True, "true"), ("x", '"x"')])
    def test_an_agent_that_gives_one_answer_refuses_another_number(self, n, shown):
        with pytest.raises(BadField, match=f"n: must be 1, not {shown}: each request returns one choice"):
            check_one_answer({"n": n})
        for fine in ({}, {"n": None}, {"n": 1}):
            check_one_answer(fine)

    def test_streaming_and_usage_are_read(self):
        request = asked(stream=True, stream_options={"include_usage": True})
        assert request.stream and request.include_usage
        assert not asked(stream=True).include_usage

    def test_the_session_is_the_metadatas_else_the_user(self):
        both = asked(metadata={"session_id": "s1"}, user="u1")
        assert (both.session_id, both.user_id) == ("s1", "u1")
        user = asked(user="u1", metadata={"other": "x"})
        assert (user.session_id, user.user_id) == ("u1", "u1")
        named = asked(user="u1", metadata={"user_id": "m1"})
        assert (named.session_id, named.user_id) == ("u1", "m1")
        empty = asked(user="", metadata={"session_id": ""})
        assert (empty.session_id, empty.user_id) == (None, None)

    @pytest.mark.parametrize(
        ("changes", "param", "problem"),
        [
            ({"model": None}, "model", "required: the agent's name"),
            ({"model": ""}, "model", "required: the agent's name"),
            ({"model": 3}, "model", "must be a string, not 3"),
            ({"messages": None}, "messages", "required: a list of at least one message"),
            ({"messages": []}, "messages", "required: a list of at least one message"),
            ({"messages": "hi"}, "messages", "required: a list of at least one message"),
            ({"messages": ["hi"]}, "messages[0]", 'must be an object, not "hi"'),
            ({"messages": [*MESSAGES, {"content": "a"}]}, "messages[2].role", "required: 'user', "),
            ({"messages": [{"role": 1}]}, "messages[0].role", "must be a string, not 1"),
            ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "must be text or a list"),
            (
                {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
                "messages[0].content[0].text",
                "required: the text",
            ),
            (
                {"messages": [{"role": "user", "content": ["hi"]}]},
                "messages[0].content[0]",
                "must be an object with a 'type'",
            ),
            ({"stream": "yes"}, "stream", 'must be true or false, not "yes"'),
            ({"stream_options": []}, "stream_options", "must be an object, not []"),
            ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "must be true or false"),
            ({"metadata": "x"}, "metadata", 'must be an object, not "x"'),
            ({"metadata": {"session_id": 7}}, "metadata.session_id", "must be a string, not 7"),
            ({"user": ["x" * 100]}, "user", 'must be a string, not ["xxx'),
        ],
    )
    def test_a_wrong_field_is_refused_by_its_path(self, changes, param, problem):
        with pytest.raises(BadField) as failure:
            asked(**changes)
        assert failure.value.param == param
        assert failure.value.message.startswith(f"{param}: {problem}")
        assert len(failure.value.message) < 120

    @pytest.mark.parametrize("body", [None, [], "text", 3])
    def test_a_body_that_is_no_object_is_refused(self, body):
        with pytest.raises(BadRequest, match="must be a JSON object"):
            ChatRequest.parse(body)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
    def test_any_value_of_a_field_is_read_or_refused_as_a_bad_request(self, value):
        for name in ("model", "messages", "n", "stream", "stream_options", "metadata", "user"):
            try:
                asked(**{name: value})
            except BadRequest as error:
                assert error.message.startswith(name)


class TestTexts:
    def test_the_last_thing_the_user_said_counts(self):
        later = [*MESSAGES, {"role": "user", "content": "bye"}, {"role": "assistant", "content": "ok"}]
        assert last_user_text(later) == "bye"

    @pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
    def test_without_a_user_the_last_message_counts(self, role):
        assert last_user_text([MESSAGES[0], {"role": role, "content": "so"}]) == "so"

    def test_text_parts_are_lines_and_other_parts_are_left_out(self):
        parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
        assert content_text(parts) == "a\nb"
        assert content_text([{"type": "image_url"}]) == content_text(None) == ""


class TestAnswers:
    def test_a_completion_is_what_the_client_expects(self):
        answer = ChatCompletion.model_validate(completion("two words", **HEAD), strict=True)
        assert answer.choices[0].message.content == "two words"
        assert answer.choices[0].finish_reason == "stop"
        assert (answer.id, answer.created, answer.model) == ("chatcmpl-1", 1700000000, "support")
        assert answer.usage is not None and answer.usage.model_dump(exclude_none=True) == {
            "prompt_tokens": 4,
            "completion_tokens": 2,
            "total_tokens": 6,
        }

    @pytest.mark.parametrize(("reply", "text"), [(None, ""), ({"a": "é"}, '{"a": "é"}'), ([{"type": "x"}], '[{"type": "x"}]')])
    def test_a_reply_that_is_no_text_becomes_its_json(self, reply, text):
        assert completion(reply, **HEAD)["choices"][0]["message"]["content"] == text

    def test_models_are_what_the_client_expects(self):
        listed = model_list(["a", "b"])
        assert listed["object"] == "list"
        assert [Model.model_validate(one, strict=True).id for one in listed["data"]] == ["a", "b"]
        assert Model.model_validate(model("a", created=5), strict=True).created == 5


class TestChunks:
    def test_a_stream_is_a_role_then_deltas_then_the_reason(self):
        chunks = Chunks(**HEAD)
        parsed = [
            ChatCompletionChunk.model_validate(chunk, strict=True)
            for chunk in (chunks.first(), chunks.delta("he"), chunks.delta("llo"), *chunks.last())
        ]
        assert parsed[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].delta.content for chunk in parsed] == ["", "he", "llo", None]
        assert [chunk.choices[0].finish_reason for chunk in parsed] == [None, None, None, "stop"]
        assert {(chunk.id, chunk.created, chunk.model) for chunk in parsed} == {("chatcmpl-1", 1700000000, "support")}
        assert all(chunk.usage is None for chunk in parsed)

    def test_usage_comes_last_without_choices_when_asked_for(self):
        chunks = Chunks(**HEAD, include_usage=True)
        assert chunks.delta("hello there")["usage"] is None
        last = ChatCompletionChunk.model_validate(chunks.last()[-1], strict=True)
        assert last.choices == [] and last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (4, 2, 6)

    @given(st.lists(st.text(alphabet="ab \n")))
    def test_a_streamed_answer_counts_as_many_words_as_a_whole_one(self, pieces):
        chunks = Chunks(**HEAD, include_usage=True)
        for piece in pieces:
            chunks.delta(piece)
        assert chunks.last()[-1]["usage"] == completion("".join(pieces), **HEAD)["usage"]


class TestErrors:
    def test_a_wrong_field_is_the_param(self):
        assert error_body(BadField("n", "no")) == {
            "error": {"message": "n: no", "type": "bad_request", "param": "n", "code": "bad_request"}
        }

    @pytest.mark.parametrize(
        ("error", "code"),
        [(UnknownAgent("no"), "model_not_found"), (RateLimited("no"), "rate_limit_exceeded")],
    )
    def test_codes_are_openais_where_it_has_them(self, error, code):
        assert error_body(error, "r1") == {
            "error": {"message": "no", "type": error.type, "param": None, "code": code, "request_id": "r1"}
        }
