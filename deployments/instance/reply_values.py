"""What a handler may return or yield, as JSON or as text.

Text, bytes (UTF-8), what JSON can express, pydantic models, dataclasses, enums, dates, UUIDs, Decimals, sets, paths, and the
arrays and scalars of numpy: as FastAPI encodes them. NaN and the infinities, which JSON does not have, become null. Anything
else is an agent_error that names the type. Half of a surrogate pair becomes U+FFFD. Source: fastapi.encoders.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, KeysView, Mapping, ValuesView
from collections.abc import Set as AnySet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from typing import Any
from uuid import UUID

from policies.errors import AgentFailed

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_WRITTEN = (UUID, PurePath, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
_SENTENCE = "it can be text, bytes, JSON, a pydantic model, a dataclass or a Starlette response"


class NotSendable(AgentFailed):
    """The handler's reply has no form as JSON."""

    def __init__(self, reply: object, why: str) -> None:
        super().__init__(f"the handler's reply ({_name(reply)}) cannot be sent: {why}")


def encode(value: object) -> str:
    """The value as JSON text that is valid Unicode. Raises NotSendable."""
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError):  # something that JSON itself does not have
        text = _ENCODER.encode(plain(value))
    return text if text.isascii() else _valid_unicode(text)


def text_of(value: object) -> str:
    """The value as text: JSON, unless it is text already; None is empty text. Raises NotSendable."""
    if not isinstance(value, str):
        if value is None:
            return ""
        value = plain(value)
    if not isinstance(value, str):
        return encode(value)
    return value if value.isascii() else _valid_unicode(value)


def plain(value: object) -> Any:
    """The value in JSON's own types. Raises NotSendable."""
    try:
        return _plain(value)
    except RecursionError:
        raise NotSendable(value, "it is nested too deep, or contains itself") from None


class TextPieces:
    """The pieces of one stream as text. A character may be split over two pieces of bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, piece: object) -> str:
        """Raises NotSendable."""
        if isinstance(piece, bytes | bytearray | memoryview):
            return self._decoder.decode(bytes(piece))
        return text_of(piece)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | AnySet | deque | KeysView | ValuesView):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return _converted(value)


def _converted(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, _WRITTEN):
        return str(value)
    if isinstance(value, type):
        raise NotSendable(value, f"it is a class; {_SENTENCE}")
    convert = _conversion(value)
    if convert is None:
        raise NotSendable(value, _SENTENCE)
    try:
        converted = convert()
    except Exception as error:
        raise NotSendable(value, f"its conversion raised {type(error).__name__}") from error
    return _plain(converted)


def _conversion(value: Any) -> Callable[[], Any] | None:
    """pydantic's models (of version 2 and 1), and the arrays and scalars of numpy and its like."""
    if hasattr(value, "__pydantic_serializer__") and hasattr(value, "model_dump"):
        return lambda: value.model_dump(mode="json", by_alias=True)
    if hasattr(value, "__fields__") and hasattr(value, "dict"):
        return lambda: value.dict(by_alias=True)
    if hasattr(value, "get_secret_value"):
        return lambda: str(value)
    tolist = getattr(value, "tolist", None)
    return tolist if callable(tolist) else None


def _key(name: Any) -> Any:
    key = _plain(name)
    if key is None or isinstance(key, str | bool | int | float):
        return key
    raise NotSendable(name, "it is a name in an object, which must be text")


def _number(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and 0 <= exponent < 300 else _plain(float(value))


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise NotSendable(value, "they are not UTF-8; return a Starlette response to send other bytes") from None


def _valid_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _name(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
