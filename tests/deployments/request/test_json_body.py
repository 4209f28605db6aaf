"""One parser for routing, limits and handlers: what it refuses, and that a cut-off body gives the same values."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.request.json_body import DEPTH, check_depth, parse, top_level
from policies.errors import BadRequest

UTF_8_MARK = b"\xef\xbb\xbf"
VALUES = st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """An object of that many levels in all."""
    return b'{"message": ' + opening * (levels - 1) + closing * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"{broken", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        (b'{"a": 1e400}', "out of range"),
        (b'{"a": -1e400}', "out of range"),
        (b'{"a": %s}' % (b"9" * 310), "out of range"),
        (b'{"a": %s}' % (b"9" * 100_000), "out of range"),
        (b'{"a": "\xff"}', "byte 7 is not valid UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 0 is not valid UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "not JSON"),
        ('{"a": 1}'.encode("utf-32"), "byte 0 is not valid UTF-8"),
        ('{"a": 1}'.encode("utf-32-be"), "not JSON"),
        (UTF_8_MARK * 2 + b"{}", "not JSON"),
        (b'{"a": "\x01"}', "not JSON"),
        (nested(DEPTH + 1), "nested too deep: at most 200 levels"),
        (nested(100_000), "nested too deep"),
        (nested(100_000, b'{"":[', b"]}"), "nested too deep"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_not_json_of_a_sane_size_is_a_bad_request(body: bytes, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        nested(DEPTH),
        nested(DEPTH // 2, b'{"":[', b"]}"),
        b'{"message": "' + b"[" * 5000 + b'"}',
        b'{"message": "' + b'\\"[\\\\' * 5000 + b'"}',
        b'{"message": [' + b"[]," * 5000 + b"{}]}",
        b'{"message": 1.7e308, "n": %s}' % (b"9" * 309),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_depth_counts_levels_and_not_brackets(body: bytes) -> None:
    assert parse(body) == json.loads(body)


def test_a_byte_order_mark_is_ignored_in_whole_and_in_part() -> None:
    body = UTF_8_MARK + b'{"session_id": "s", "message": "x"}'
    assert parse(body)["session_id"] == "s"
    assert top_level(body, {"session_id"}) == {"session_id": "s"}
    assert top_level(body[:25], {"session_id"}) == {"session_id": "s"}


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d", "\ufffd"),
        (r"\ude00\ud83d!", "\ufffd\ufffd!"),
        (r"\\ud83d", r"\ud83d"),
        (r"a\uD800\ud83d\ude00", "a\ufffd\U0001f600"),
    ],
)
def test_every_text_can_be_encoded(escaped: str, text: str) -> None:
    body = f'{{"session_id": "{escaped}", "{escaped}": [{{"b": "{escaped}"}}]}}'.encode()
    assert parse(body) == {"session_id": text, text: [{"b": text}]}
    assert top_level(body, {"session_id"}) == {"session_id": text}


@pytest.mark.parametrize(
    "body",
    [b"[" * 20_000_000, b'{"a": "' + b'\\"' * 10_000_000, b'{"a": "' + b'""' * 10_000_000],
    ids=["brackets", "escapes", "quotes"],
)
def test_the_depth_of_a_large_hostile_body_is_found_quickly(body: bytes) -> None:
    began = time.monotonic()
    with contextlib.suppress(BadRequest):
        check_depth(body + b"[" * 300)
    assert time.monotonic() - began < 10  # a quadratic scan would take hours


@given(st.dictionaries(st.text(max_size=5), VALUES))
def test_the_fields_of_a_whole_body_are_those_that_json_parses(body: dict[str, Any]) -> None:
    wanted = set(list(body)[:2])
    fields = top_level(json.dumps(body).encode(), wanted)
    assert fields == {name: body[name] for name in wanted}


@given(st.lists(st.tuples(st.sampled_from(["session_id", "user_id", "x"]), VALUES), max_size=6))
def test_of_duplicates_the_last_counts_for_all(pairs: list[tuple[str, Any]]) -> None:
    body = ("{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}").encode()
    assert parse(body) == dict(pairs)
    assert top_level(body, {"session_id"}) == {name: value for name, value in dict(pairs).items() if name == "session_id"}


@given(st.binary(max_size=200) | st.text().map(str.encode), st.integers(0, 60))
def test_no_prefix_of_any_body_raises(content: bytes, cut: int) -> None:
    top_level(content, {"session_id"})
    whole = b'{"session_id": "s1", "message": "' + content.hex().encode() + b'"}'
    assert top_level(whole[:cut], {"session_id"}) in ({}, {"session_id": "s1"})


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u 1eEdD8').map(str.encode))
def test_whatever_arrives_is_an_object_or_a_bad_request(content: bytes) -> None:
    for body in (content, b'{"a": ' + content + b"}"):
        with contextlib.suppress(BadRequest):
            assert isinstance(parse(body), dict)
