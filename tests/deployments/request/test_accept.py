from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.request.accept import prefers_events


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("TEXT/EVENT-STREAM", True),
        ("text/event-stream; charset=utf-8", True),
        ("text/event-stream, */*", True),
        ("text/event-stream, application/json;q=0.9", True),
        ("application/json;Q=0.5 , text/event-stream ; q=0.6", True),
        ("text/*", True),
        ("text/event-stream;q=0.1", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/event-stream", False),
        ("text/event-stream, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0, */*", False),
        ("text/*, text/event-stream;q=0", False),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream;q=0.5, */*", False),
        ("text/event-stream;q=2", False),
        ("text/event-stream;q=nan", False),
        ("text/event-streams", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        (",;q=1,, ", False),
    ],
)
def test_events_are_chosen_when_they_are_preferred_to_json(accept: str, events: bool) -> None:
    assert prefers_events([(b"accept", accept.encode())]) is events


def test_several_headers_are_one_list() -> None:
    assert prefers_events([(b"accept", b"application/json;q=0.1"), (b"accept", b"text/event-stream")])
    assert not prefers_events([])


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_any_bytes_are_read(values: list[bytes]) -> None:
    assert prefers_events([(b"accept", value) for value in values]) in (True, False)
