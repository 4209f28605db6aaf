"""A request body as JSON: one parser, so that routing, rate limits and the handler read the same values.

UTF-8 (a byte order mark is ignored), an object on top, at most DEPTH levels, no NaN and no number beyond a double's range. Of
duplicate names the last one counts. Half of a surrogate pair, which is no character, becomes U+FFFD, so that every text can be
encoded. Whatever is refused here is the client's mistake: a 400 before the agent's code runs. Source: RFC 8259.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from itertools import accumulate
from typing import Any, NoReturn, TypeVar

from policies.errors import BadRequest

DEPTH = 200  # levels of arrays and objects; far below Python's recursion limit, which is 1000 calls

_DIGITS = 309  # of the largest double
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\r\n]*")
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: 1 and -1
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[{]}")

T = TypeVar("T")


def parse(body: bytes) -> dict[str, Any]:
    """The object in the body. Raises BadRequest."""
    check_depth(body)
    try:
        value = _DECODER.decode(_without_mark(body.decode()))
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not JSON: byte {error.start} is not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the request body must be a JSON object")
    return _valid_unicode(value, body)


def top_level(prefix: bytes, wanted: set[str]) -> dict[str, Any]:
    """The `wanted` fields of a body of which only the beginning may have been read. Raises nothing.

    A complete body gives the values of `parse`; one that is cut off gives the fields that are complete.
    """
    try:
        text = _without_mark(codecs.utf_8_decode(prefix, "strict", False)[0])
        return _valid_unicode(_complete_fields(text, wanted), prefix)
    except (UnicodeDecodeError, RecursionError):
        return {}


def check_depth(body: bytes) -> None:
    """Raises BadRequest for a body with more than DEPTH levels. Of most bodies it only counts the brackets."""
    if body.count(b"[") + body.count(b"{") <= DEPTH:
        return
    outside_strings = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = array("b", outside_strings.translate(_STEPS, _NO_BRACKETS))
    if max(accumulate(steps), default=0) > DEPTH:
        raise BadRequest(f"the request body is nested too deep: at most {DEPTH} levels of arrays and objects are allowed")


def _complete_fields(text: str, wanted: set[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    at = _skip_space(text, 0)
    if text[at : at + 1] != "{":
        return fields
    try:
        while text[at : at + 1] in ("{", ","):
            name, at = _DECODER.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            if text[at : at + 1] != ":":
                break
            value, at = _DECODER.raw_decode(text, _skip_space(text, at + 1))
            if name in wanted:
                fields[name] = value  # of duplicates the last one, as in `parse`
            at = _skip_space(text, at)
    except (ValueError, RecursionError):  # not JSON, or cut off
        pass
    return fields


def _without_mark(text: str) -> str:
    return text.removeprefix("\ufeff")


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _valid_unicode(value: T, source: bytes) -> T:
    """The value without surrogates that stand alone; `source` is its JSON."""
    if _SURROGATE.search(source) is None:
        return value
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        result: T = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
        return result
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if value - value:  # of an infinity it is NaN
        raise ValueError("a number is out of range: at most 1.8e308 is allowed")
    return value


def _int(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number is out of range: at most {_DIGITS} digits are allowed")
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_int)
