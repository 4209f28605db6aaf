from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.testclient import TestClient

from examples import support
from swiftclaw.agent import RequestInfo, Turn


@pytest.fixture(autouse=True)
def nobody_known():
    support.customers.clear()


async def say(message, session_id=None):
    answer = await support.agent.answer(Turn(message, session_id, None))
    assert isinstance(answer, AsyncIterator)
    pieces = [piece async for piece in answer]
    assert len(pieces) > 1, "the answer is streamed"
    return "".join(pieces)


class TestTalking:
    async def test_what_was_said_earlier_in_the_session_is_remembered(self):
        assert await say("Hi, my name is Ada", "s1") == "Hello Ada, what is your order number?"
        assert await say("My order number is 1042.", "s1") == "Ada, your order 1042 is being packed."
        assert await say("Where is my order?", "s1") == "Ada, your order 1042 is being packed."

    async def test_sessions_know_nothing_of_each_other(self):
        await say("call me Ada, order #7", "s1")
        assert await say("where is my order?", "s2") == ("please tell me your order number, as in: my order number is 1042.")

    async def test_without_a_session_nothing_is_kept(self):
        assert await say("order 8") == "your order 8 is delivered."
        assert not support.customers

    async def test_the_conversation_of_the_chat_api_is_remembered_without_a_session(self):
        asked = [
            {"role": "user", "content": "my name is Ada"},
            {"role": "assistant", "content": "Hello Ada, what is your order number?"},
            {"role": "user", "content": "order 1042"},
            {"role": "user", "content": "Where is my order?"},
        ]
        info = RequestInfo({}, {}, "instance-1", "local", "v1", asked)
        answer = await support.agent.answer(Turn("Where is my order?", None, None, info))
        assert isinstance(answer, AsyncIterator)
        assert "".join([piece async for piece in answer]) == "Ada, your order 1042 is being packed."

    async def test_the_longest_unused_session_is_forgotten_first(self, monkeypatch):
        monkeypatch.setattr(support, "SESSIONS", 2)
        for session in ("s1", "s2", "s1", "s3"):
            await say("order 7", session)
        assert list(support.customers) == ["s1", "s3"]


async def test_it_is_healthy_from_start_to_stop():
    assert await support.agent.check() == (False, "the warehouse does not answer")
    await support.agent.start()
    assert await support.agent.check() == (True, "")
    await support.agent.stop()
    assert not (await support.agent.check())[0]


def test_it_asks_for_session_affinity():
    assert support.agent.session_affinity


class TestApp:
    @pytest.fixture
    def client(self):
        assert support.agent.app is not None
        return TestClient(support.agent.app)

    def test_an_order_is_shown_as_json(self, client):
        assert client.get("/orders/1043").json() == {"id": 1043, "status": "on its way"}
        assert client.get("/orders/mine").status_code == 404

    @pytest.mark.parametrize("size", [0, 1, support.BLOCK, 3 * support.BLOCK + 1])
    def test_a_download_has_as_many_bytes_as_asked_for(self, client, size):
        answer = client.get(f"/download/{size}")
        assert len(answer.content) == int(answer.headers["content-length"]) == size

    def test_an_upload_is_counted(self, client):
        blocks = (b"x" * 1000 for _ in range(100))
        assert client.post("/upload", content=blocks).json() == {"bytes": 100_000}

    def test_a_websocket_sends_back_text_and_bytes(self, client):
        with client.websocket_connect("/ws") as websocket:
            websocket.send_text("hi")
            assert websocket.receive_text() == "hi"
            websocket.send_bytes(b"\x00\xff")
            assert websocket.receive_bytes() == b"\x00\xff"
