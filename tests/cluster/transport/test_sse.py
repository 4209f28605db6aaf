"""Server-sent events: what is written is what is parsed, however the bytes are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.transport.sse import DONE, EventParser, ServerEvent, encode

TEXTS = st.text(max_size=10)


def parsed(*pieces: bytes) -> list[ServerEvent]:
    parser = EventParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return [*events, *parser.end()]


def test_an_event_is_an_id_a_name_and_its_data() -> None:
    assert encode("{}") == b"data: {}\n\n"
    assert encode("{}", name="error", id=7) == b"id: 7\nevent: error\ndata: {}\n\n"


@given(st.lists(st.tuples(TEXTS, st.sampled_from([None, "error"]))), st.integers(1, 7))
def test_what_is_written_is_parsed_however_the_stream_is_cut(events: list[tuple[str, str | None]], size: int) -> None:
    stream = b"".join(encode(json.dumps(text, ensure_ascii=False), name=name) for text, name in events)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [(json.loads(event.data), event.name) for event in parsed(*pieces)] == [
        (text, (name or "message").encode()) for text, name in events
    ]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\r\n\r\n", [b"one"]),
        (b"data:one\n\n", [b"one"]),
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b": a comment\n\ndata: one\n\n", [b"one"]),
        (b"event: error\n\ndata: one\n\n", [b"one"]),
        (b"data: one\n\ndata: cut off", [b"one"]),
        (b"data: cut off\n", []),
        (DONE, [b"[DONE]"]),
        (b"data: [DONE]", [b"[DONE]"]),
        (b"data: [DONE]\n", [b"[DONE]"]),
    ],
)
def test_streams_of_other_servers_are_parsed_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    assert [event.data for event in parsed(stream)] == events


def test_a_name_holds_for_one_event_only() -> None:
    assert [event.name for event in parsed(b"event: error\ndata: 1\n\ndata: 2\n\n")] == [b"error", b"message"]
