"""Which values may one setting have? Readers of numbers, durations, sizes, names and addresses, each with its JSON schema.

A reader returns what the program works with, or raises ConfigError with one sentence: the value, what it is not, and what
is allowed. Patterns keep to what Python and ECMAScript both understand; outside ASCII they accept more than the reader.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from typing import Literal

from cluster.config.fields import Reader, Schema, name_of, named, reads, text
from cluster.config.mistakes import ConfigError, Location, did_you_mean, shown

UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
UNITS_BYTES = {"B": 1, "KB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
MOST_WORKERS = 256
MAX_DISTANCE_S = 10.0  # nothing on Earth is further; who writes 80 meant 80ms

_AMOUNT = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = "".join(f"(?:({_AMOUNT}){unit})?" for unit in UNITS_S)
_SIZE = rf"({_AMOUNT}) ?({'|'.join(UNITS_BYTES)})"
_VERSION = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}"
_HOST = "[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
_INSTANCE = "instance-[1-9][0-9]{0,8}"
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"

# The same for schemas, where \w is only ASCII in some languages; addresses only roughly.
_DOTTED_SCHEMA = _DOTTED.replace(r"[^\W\d]\w*", r"(?:[A-Za-z_]|[^\x00-\x7F])(?:[A-Za-z0-9_]|[^\x00-\x7F])*")
_IPV6 = r"(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]+(?:%[^/]+)?"
_IPV4 = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"


def _matching(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _duration_schema(*, zero: bool) -> Schema:
    some = "(?=.)" if zero else "(?=.*[1-9])"
    pattern = f"^{some}(?:{_AMOUNT}|{_DURATION})$"
    return {"type": ["string", "number"], "pattern": pattern, "minimum" if zero else "exclusiveMinimum": 0}


def _written_duration(duration_s: float) -> str:
    """`5m` for 300."""
    unit = next((unit for unit, unit_s in UNITS_S.items() if duration_s and duration_s % unit_s == 0), "s")
    return f"{duration_s / UNITS_S[unit]:g}{unit}"


def _written_size(size: int) -> str:
    """`100MiB` for 104857600."""
    unit = next(unit for unit in reversed(UNITS_BYTES) if size % UNITS_BYTES[unit] == 0)
    return f"{size // UNITS_BYTES[unit]}{unit}"


def duration(value: object) -> float:
    """Seconds of `250ms`, `5s`, `1m`, `1h30m`, `1d` or a number of seconds. Raises ConfigError with a sentence."""
    result_s = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        result_s = _finite(value)
    elif isinstance(value, str) and re.fullmatch(_AMOUNT, value):
        result_s = float(value)
    elif isinstance(value, str) and value and (match := re.fullmatch(_DURATION, value)):
        result_s = sum(float(amount) * UNITS_S[unit] for unit, amount in zip(UNITS_S, match.groups(), strict=True) if amount)
    if not 0 <= result_s < math.inf:
        raise ConfigError(f"{shown(value)} is not a duration (250ms, 5s, 1m, 1h30m, or a number of seconds)")
    return result_s


def seconds(*, zero: bool = False) -> Reader:
    """A duration; `zero`: whether none at all makes sense."""

    @reads(_duration_schema(zero=zero), _written_duration)
    def read(value: object, at: Location) -> float:
        result_s = duration(value)
        if result_s == 0 and not zero:
            raise ConfigError(f"{shown(value)} is not a duration above zero")
        return result_s

    return read


@reads(_duration_schema(zero=True) | {"maximum": MAX_DISTANCE_S})
def distance_ms(value: object, at: Location) -> float:
    """A round-trip time as a duration, in milliseconds to the microsecond."""
    result_s = duration(value)
    if result_s > MAX_DISTANCE_S:
        raise ConfigError(
            f"{shown(value)} is {result_s:g} seconds; at most {MAX_DISTANCE_S:g} are allowed (milliseconds: 80ms)"
        )
    return round(result_s * 1000, 3)


def whole(low: int, high: int | None = None, kind: str = "whole number") -> Reader:
    allowed = f"at least {low}" if high is None else f"{low} to {high}"

    @reads({"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high}))
    def read(value: object, at: Location) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ConfigError(f"{shown(value)} is not a {kind} ({allowed})")
        return value

    return read


@reads({"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_WORKERS}, {"const": "auto"}]})
def workers(value: object, at: Location) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_WORKERS:
        raise ConfigError(f"{shown(value)} is not a number of workers (0 to {MOST_WORKERS}, or auto)")
    return value


def number(low: float = 0, high: float = math.inf, *, above: bool = False, kind: str = "number") -> Reader:
    """`above`: more than `low`, not just at least."""
    start = f"above {low:g}" if above else f"{low:g} to" if high < math.inf else f"at least {low:g}"
    allowed = start if high == math.inf else f"{start} {high:g}" if not above else f"{start}, at most {high:g}"
    bounds = {"exclusiveMinimum" if above else "minimum": low} | ({"maximum": high} if high < math.inf else {})

    @reads({"type": "number"} | bounds)
    def read(value: object, at: Location) -> float:
        result = _finite(value)
        if not low <= result <= high or (above and result == low) or math.isinf(result):
            raise ConfigError(f"{shown(value)} is not a {kind} ({allowed})")
        return result

    return read


@reads({"type": "boolean"})
def flag(value: object, at: Location) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{shown(value)} is not a boolean (true, false)")
    return value


def choice(kind: str, *allowed: str) -> Reader:
    @reads({"type": "string", "enum": list(allowed)})
    def read(value: object, at: Location) -> str:
        if value not in allowed:
            hint = did_you_mean(value, allowed)
            raise ConfigError(f"{shown(value)} is not a {kind} ({', '.join(allowed)}){hint}")
        return str(value)

    return read


@reads({"type": ["string", "integer"], "pattern": rf"^(?=.*[1-9]){_SIZE}$", "minimum": 1}, _written_size)
def size_bytes(value: object, at: Location) -> int:
    """A number of bytes, or text like 100MiB (2^20) or 10MB (10^6)."""
    size: float = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if isinstance(value, str) and len(value) <= 40 and (match := re.fullmatch(_SIZE, value)):
        size = float(match[1]) * UNITS_BYTES[match[2]]
    if size < 1:
        raise ConfigError(f"{shown(value)} is not a size (a number of bytes, 100MiB, 10MB)")
    return int(size)


region = name_of("region")


@reads(_matching(_VERSION))
def version(value: object, at: Location) -> str:
    if not re.fullmatch(_VERSION, text(value, "version")):
        raise ConfigError(f"{shown(value)} is not a version (letters, digits, . - and _; at most 63; a letter or digit first)")
    return str(value)


@reads(_matching(_INSTANCE))
def instance_name(value: object, at: Location) -> str:
    if not re.fullmatch(_INSTANCE, text(value, "name of an instance")):
        raise ConfigError(f"{shown(value)} is not the name of an instance (instance-1, instance-2, ...)")
    return str(value)


@reads(_matching(f"{_DOTTED_SCHEMA}:{_DOTTED_SCHEMA}"))
def import_name(value: object, at: Location) -> str:
    if not re.fullmatch(f"{_DOTTED}:{_DOTTED}", text(value, "name of an Agent")):
        raise ConfigError(f"{shown(value)} does not name an Agent (module:attribute, like examples.support:agent)")
    return str(value)


@reads(_matching(f"{_HOST}|{_IPV6}"))
def host(value: object, at: Location) -> str:
    name = text(value, "host")
    if not re.fullmatch(_HOST, name) and not _is_address(name):
        raise ConfigError(f"{shown(value)} is not a host (an IP address or a host name, without a port)")
    return name


@reads(_matching(_TOKEN))
def header_name(value: object, at: Location) -> str:
    if not re.fullmatch(_TOKEN, text(value, "name of a header or cookie")):
        raise ConfigError(f"{shown(value)} is not the name of a header or cookie (letters, digits and -, like Mcp-Session-Id)")
    return str(value)


@reads({"type": "string", "minLength": 1})
def file_path(value: object, at: Location) -> str:
    """An absolute path; a relative one starts from the folder of the file that is read."""
    path = text(value, "path")
    if not path or not path.isprintable():
        raise ConfigError(f"{shown(value)} is not a path")
    return os.path.normpath(at.folder.absolute() / path)


@reads(_matching(f"(?:{_IPV4}|{_IPV6})(?:/[0-9.]+)?"))
def network(value: object, at: Location) -> str:
    """A network in its usual form; a bare address is a network of one."""
    name = text(value, "network")
    try:
        return str(ipaddress.ip_network(name))
    except ValueError:
        raise ConfigError(f"{shown(value)} is not a network (10.0.0.0/8, fd00::/8){_without_host_bits(name)}") from None


client_regions = named("network", region, network, to="its region")


@reads({"type": "string"})
def variable(value: object, at: Location) -> str:
    return text(value, "value of an environment variable")


@reads(_matching(_VARIABLE))
def variable_name(value: object, at: Location) -> str:
    if not re.fullmatch(_VARIABLE, text(value, "name of an environment variable")):
        raise ConfigError(f"{shown(value)} is not the name of an environment variable (letters, digits and _)")
    return str(value)


@reads({"type": "string", "pattern": r"\S"})
def requirement(value: object, at: Location) -> str:
    if not text(value, "requirement").strip():
        raise ConfigError(f"{shown(value)} is not a requirement (like numpy or httpx==0.27)")
    return str(value)


def _finite(value: object) -> float:
    """The number, or NaN, which is within no bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _without_host_bits(name: str) -> str:
    try:
        return f"; did you mean {ipaddress.ip_network(name, strict=False)}?"
    except ValueError:
        return ""
