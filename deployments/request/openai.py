"""The chat API: what a request must look like, and what OpenAI clients expect in return. No I/O.

`model` is the agent's name. The agent's handler gets the last user message; the whole conversation is in `request.messages`.
Fields that this project does not use (tools, temperature, …) pass unread: to the model of an agent without a handler.

`usage` of a handler's reply is an estimate, in words between white space: the agents' tokenizers are unknown here. Clients
insist on integers; do not bill by them. The completions and chunks of a model server have its own.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.errors import BadRequest, ModelRefused, RateLimited, SwiftClawError, UnknownAgent

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
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)  # the other fields, for the model

    @classmethod
    def parse(cls, body: object) -> ChatRequest:
        """From the decoded JSON body. Raises BadField, or BadRequest when it is not an object."""
        if not isinstance(body, dict):
            raise BadRequest("the request body must be a JSON object")
        model = _text(body, "model")
        if model is None:
            raise BadField("model", "required: the agent's name")
        messages = _messages(body.get("messages"))
        user, metadata = _text(body, "user"), _object(body, "metadata")
        return cls(
            model=model,
            messages=messages,
            stream=_flag(body, "stream"),
            include_usage=_flag(_object(body, "stream_options"), "include_usage", "stream_options."),
            session_id=_text(metadata, "session_id", "metadata.") or user,
            user_id=_text(metadata, "user_id", "metadata.") or user,
            options=_options(body, metadata),
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
    """The text of the last user message; without one, of the last message."""
    newest_first = list(reversed(list(messages)))
    chosen = next((message for message in newest_first if message.get("role") == "user"), newest_first[0])
    return content_text(chosen.get("content"))


def chat_messages(message: object) -> Sequence[Mapping[str, Any]]:
    """A list of chat messages as it is; anything else is what a user says."""
    if isinstance(message, list) and message and all(isinstance(item, dict) and "role" in item for item in message):
        return message
    return [{"role": "user", "content": text_of(message)}]


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a completion's message or a chunk's delta: its content, else its refusal."""
    return content_text(message.get("content")) or text_of(message.get("refusal"))


def check_one_answer(options: Mapping[str, Any]) -> None:
    """For agents that give one answer per request. Raises BadField for another `n`."""
    n = options.get("n")
    if n is not None and (n != 1 or isinstance(n, bool)):
        raise BadField("n", f"must be 1, not {_shown(n)}: each request returns one choice")


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


class Completion(dict[str, Any]):
    """A `chat.completion` as a model server made it, for the client: only `model` becomes the agent's name."""


@dataclass(frozen=True)
class CompletionStream:
    """The `chat.completion.chunk` objects of a model server, likewise. Close `chunks`."""

    chunks: AsyncGenerator[dict[str, Any], None]


def reply_of(completion: Completion) -> object:
    """The first choice as the reply to a message: its text, or the message itself when it is something else (tool calls)."""
    message = completion["choices"][0]["message"]
    return message if message.get("tool_calls") or message.get("function_call") else message_text(message)


async def as_chunks(completion: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """A completion as a stream: its choices whole, their reasons, then the usage."""
    choices = completion.get("choices") or []
    head = {name: value for name, value in completion.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    deltas = [{"index": n, "delta": _delta(choice), "finish_reason": None} for n, choice in enumerate(choices)]
    yield {**head, "choices": deltas}
    reasons = [{"index": n, "delta": {}, "finish_reason": choice.get("finish_reason")} for n, choice in enumerate(choices)]
    yield {**head, "choices": reasons}
    if completion.get("usage"):
        yield {**head, "choices": [], "usage": completion["usage"]}


def _delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    message = dict(choice.get("message") or {})
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls)]
    return message


def model(name: str, *, created: int = 0) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def model_list(names: Iterable[str], *, created: int = 0) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created=created) for name in names]}


def error_body(error: SwiftClawError, request_id: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape. `type` is the error's own, `code` OpenAI's where it has one."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": getattr(error, "param", None),
        "code": _CODES.get(error.type, error.type),
    }
    fields = error.fields if isinstance(error, ModelRefused) else None
    if fields and fields.get("type"):  # the model server has the shape too: its own words
        code = fields.get("code")
        body |= {"type": str(fields["type"]), "param": fields.get("param"), "code": code if code is None else str(code)}
    if error.detail is not None:
        body["detail"] = error.detail
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


def _options(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the model gets besides the messages: not what only SwiftClaw knows."""
    options = {name: value for name, value in body.items() if name not in ("model", "messages", "stream", "metadata")}
    if rest := {name: value for name, value in metadata.items() if name not in ("session_id", "user_id")}:
        options["metadata"] = rest
    return options


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
