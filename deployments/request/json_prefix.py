"""Top-level fields of a JSON object of which only the beginning may have been read."""

from __future__ import annotations

import re
from json import JSONDecoder
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")


def top_level(prefix: bytes, wanted: set[str]) -> dict[str, Any]:
    """The `wanted` fields that stand complete in `prefix`; fields that cannot be read are left out."""
    text = prefix.decode("utf-8", "ignore")
    decoder, fields = JSONDecoder(), dict[str, Any]()
    at = _skip_space(text, 0)
    if text[at : at + 1] != "{":
        return fields
    try:
        while len(fields) < len(wanted) and text[at : at + 1] in ("{", ","):
            name, at = decoder.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            if text[at : at + 1] != ":":
                break
            value, at = decoder.raw_decode(text, _skip_space(text, at + 1))
            if name in wanted:
                fields[name] = value
            at = _skip_space(text, at)
    except (ValueError, RecursionError):  # not JSON, cut off, or a number with too many digits
        pass
    return fields


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
