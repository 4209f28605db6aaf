"""Fields of a JSON body that may be cut off anywhere."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deployments.request.json_prefix import top_level


@given(st.dictionaries(st.text(max_size=5), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)))
def test_the_fields_of_a_whole_body_are_those_that_json_parses(body: dict[str, Any]) -> None:
    wanted = set(list(body)[:2])
    fields = top_level(json.dumps(body).encode(), wanted)
    assert fields == {name: body[name] for name in wanted}


@given(st.binary(max_size=200) | st.text().map(str.encode), st.integers(0, 60))
def test_no_prefix_of_any_body_raises(content: bytes, cut: int) -> None:
    top_level(content, {"session_id"})
    whole = b'{"session_id": "s1", "message": "' + content.hex().encode() + b'"}'
    assert top_level(whole[:cut], {"session_id"}) in ({}, {"session_id": "s1"})
