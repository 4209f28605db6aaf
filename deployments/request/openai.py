"""The chat API: what a request must look like, and what OpenAI clients expect in return. No I/O.

`model` is the agent's name. The agent's handler gets the last user message; the whole body is in `request.body`. Fields that
this project does not use (tools, temperature, …) pass unread.

`usage` is an estimate, in words between white space: the agents' tokenizers are unknown here. Clients insist on integers; do
not bill by them.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.errors import BadRequest, RateLimited, SwiftClawError, UnknownAgent

OWNER = "swiftclaw"

# OpenAI's own code where it has one, because clients look for it; elsewhere the error's type.
_CODES = {UnknownAgent.type: "model_not_found", RateLimited.type: "rate_limit_exceeded"}


class BadField(BadRequest):
    """A field is missing or wrong; `param` is its path, as OpenAI's errors name it."""

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(f"{param}: {problem}")
        self.param = param


@dataclass(frozen=True)
class ChatRequest:
    model: str
    messages: Sequence[Mapping[str, Any]]
    stream: bool = False
    include_usage: bool = False
    session_id: str | None = None  # metadata.session_id, else user
    user_id: str | None = None  # metadata.user_id, else user

    @classmethod
    def parse(cls, body: object) -> ChatRequest:
        """From the decoded JSON body. Raises BadField, or BadRequest when it is not an object."""
        if not isinstance(body, dict):
            raise BadRequest("the request body must be a JSON object")
        model = _text(body, "model")
        if model is None:
            raise BadField("model", "required: the agent's name")
        messages = _messages(body.get("messages"))
        last_user_text(messages)
        if body.get("n") is not None and (body["n"] != 1 or isinstance(body["n"], bool)):
            raise BadField("n", f"must be 1, not {_shown(body['n'])}: each request gets one answer")
        user, metadata = _text(body, "user"), _object(body, "metadata")
        return cls(
            model=model,
            messages=messages,
            stream=_flag(body, "stream"),
            include_usage=_flag(_object(body, "stream_options"), "include_usage", "stream_options."),
            session_id=_text(metadata, "session_id", "metadata.") or user,
            user_id=_text(metadata, "user_id", "metadata.") or user,
        )


def text_of(value: object) -> str:
    """Text unchanged, None as empty text, anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def content_text(content: object) -> str:
    """The text of a message's content. Of a list of parts: the text parts, one per line."""
    if not isinstance(content, list):
        return text_of(content)
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(text_of(part.get("text")) for part in parts)


def last_user_text(messages: Iterable[Mapping[str, Any]]) -> str:
    """The text of the last user message. Raises BadField without one."""
    for message in reversed(list(messages)):
        if message.get("role") == "user":
            return content_text(message.get("content"))
    raise BadField("messages", "at least one must have the role 'user'")


def words(text: str) -> int:
    return len(text.split())


def usage(messages: Iterable[Mapping[str, Any]], completion_words: int) -> dict[str, int]:
    """An estimate: words, not tokens."""
    prompt_words = sum(words(content_text(message.get("content"))) for message in messages)
    return {
        "prompt_tokens": prompt_words,
        "completion_tokens": completion_words,
        "total_tokens": prompt_words + completion_words,
    }


def completion(
    reply: object, *, id: str, created: int, model: str, messages: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The `chat.completion` of the agent's reply; a reply that is not text becomes JSON."""
    content = text_of(reply)
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(messages, words(content)),
    }


@dataclass
class Chunks:
    """The `chat.completion.chunk` objects of one stream, in this order: first, any number of deltas, last."""

    id: str
    created: int
    model: str
    messages: Iterable[Mapping[str, Any]] = ()
    include_usage: bool = False
    _words: int = field(default=0, init=False)
    _within_word: bool = field(default=False, init=False)

    def first(self) -> dict[str, Any]:
        return self._chunk([_choice({"role": "assistant", "content": "", "refusal": None})])

    def delta(self, text: str) -> dict[str, Any]:
        self._count(text)
        return self._chunk([_choice({"content": text})])

    def last(self) -> list[dict[str, Any]]:
        """The finish reason, and the usage if it was requested."""
        chunks = [self._chunk([_choice({}, finish_reason="stop")])]
        if self.include_usage:
            chunks.append({**self._chunk([]), "usage": usage(self.messages, self._words)})
        return chunks

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        return {**chunk, "usage": None} if self.include_usage else chunk

    def _count(self, text: str) -> None:
        """A word split over two pieces is one word, so that streamed and whole replies count the same."""
        if not text:
            return
        self._words += words(text) - (self._within_word and not text[0].isspace())
        self._within_word = not text[-1].isspace()


def model(name: str, *, created: int = 0) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def model_list(names: Iterable[str], *, created: int = 0) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created=created) for name in names]}


def error_body(error: SwiftClawError, request_id: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape. `type` is the error's own, `code` OpenAI's where it has one."""
    body = {
        "message": error.message,
        "type": error.type,
        "param": getattr(error, "param", None),
        "code": _CODES.get(error.type, error.type),
    }
    return {"error": body if request_id is None else {**body, "request_id": request_id}}


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _messages(value: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadField("messages", "required: a list of at least one message")
    for index, message in enumerate(value):
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            raise BadField(path, f"must be an object, not {_shown(message)}")
        if _text(message, "role", f"{path}.") is None:
            raise BadField(f"{path}.role", "required: 'user', 'assistant', 'system', …")
        _check_content(message.get("content"), f"{path}.content")
    return value


def _check_content(content: object, path: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise BadField(path, f"must be text or a list of parts, not {_shown(content)}")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadField(f"{path}[{index}]", "must be an object with a 'type'")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise BadField(f"{path}[{index}].text", "required: the text")


def _text(values: Mapping[str, Any], name: str, prefix: str = "") -> str | None:
    """None when it is absent or empty."""
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise BadField(prefix + name, f"must be a string, not {_shown(value)}")
    return value or None


def _flag(values: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadField(prefix + name, f"must be true or false, not {_shown(value)}")
    return bool(value)


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if value is not None and not isinstance(value, dict):
        raise BadField(name, f"must be an object, not {_shown(value)}")
    return value or {}


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:39] + "…"
