"""The instance's server: who gets an answer at which path, and the stages of its life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.messages import (
    APP_PREFIX,
    CHECK_PATH,
    CLOSING,
    KEY_HEADER,
    LIMIT_HEADER,
    MESSAGES_PATH,
    PING_PATH,
    REFUSED_HEADER,
    InstanceSpec,
    RegistrationReply,
)
from deployments.instance.lifecycle import Lifecycle
from deployments.instance.server import InstanceServer
from swiftclaw import Agent

KEY = (KEY_HEADER, b"the-secret")


def server(agent: Agent | None = None) -> InstanceServer:
    spec = InstanceSpec("a", "tests:agent", "/", "v1", "local", "a.v1.local")
    return InstanceServer(agent or Agent("a"), spec, RegistrationReply("instance-1", "the-secret"), replica="r1")


async def request(
    to: InstanceServer, path: str, *headers: tuple[bytes, bytes], body: bytes = b""
) -> tuple[int, dict[bytes, bytes]]:
    """(status, headers) of the answer to a POST."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    length = (b"content-length", str(len(body)).encode())
    await to(
        {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": [*headers, length]},
        receive,
        send,
    )
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("path", "status"), [(PING_PATH, 204), (CHECK_PATH, 200), (MESSAGES_PATH, 200), (f"{APP_PREFIX}/page", 404)]
)
async def test_each_path_has_its_own_answer_and_none_without_the_key(path: str, status: int) -> None:
    message = b'{"message": "hi"}'
    assert (await request(server(), path, KEY, body=message))[0] == status
    assert (await request(server(), path, body=message))[0] == 403
    assert (await request(server(), path, (KEY_HEADER, b"guessed"), body=message))[0] == 403


async def test_a_closing_server_refuses_as_not_executed_and_still_answers_the_controller() -> None:
    closing = server()
    closing.advance(Lifecycle.CLOSING)
    status, headers = await request(closing, MESSAGES_PATH, KEY, body=b'{"message": "hi"}')
    assert (status, headers[REFUSED_HEADER]) == (503, CLOSING)
    assert (await request(closing, PING_PATH, KEY))[0] == 204


def test_a_server_never_returns_to_an_earlier_stage() -> None:
    made = server()
    for stage in Lifecycle:
        made.advance(stage)
        made.advance(Lifecycle.SERVING)
        assert made.stage is stage


def test_repr_states_the_situation() -> None:
    made = server()
    assert repr(made) == "<InstanceServer instance-1 of a v1 in local: serving, 0 in flight, 0 watching>"
    made.in_flight, made.watchers = 2, 1
    made.advance(Lifecycle.STOPPED_ACCEPTING)
    assert repr(made) == "<InstanceServer instance-1 of a v1 in local: stopped accepting, 2 in flight, 1 watching>"


async def test_the_requests_of_the_agent_are_counted_by_how_they_ended_and_no_other() -> None:
    agent = Agent("a")

    @agent.on_message
    async def answer(message: str) -> AsyncIterator[str] | str:
        if message == "fail":
            raise RuntimeError
        return broken() if message == "break" else message

    async def broken() -> AsyncIterator[str]:
        yield "begun"
        raise RuntimeError

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    agent.mount(page)
    made = server(agent)
    for message in ("hi", "fail", "break"):
        stream = b"true" if message == "break" else b"false"
        await request(made, MESSAGES_PATH, KEY, body=b'{"message": "%s", "stream": %s}' % (message.encode(), stream))
    await request(made, f"{APP_PREFIX}/page", KEY)
    await request(made, MESSAGES_PATH, KEY, body=b"no JSON")
    await request(made, PING_PATH, KEY)
    await request(made, MESSAGES_PATH, body=b"{}")
    await request(made, MESSAGES_PATH, KEY, (LIMIT_HEADER, b"0"), body=b"{}")
    made.advance(Lifecycle.CLOSING)
    await request(made, MESSAGES_PATH, KEY, body=b"{}")
    counts = made.tally.take()
    assert counts.codes == {200: 1, 500: 2, 503: 1, 400: 1} and sum(counts.durations) == 5
