"""What may one value be? The readers of single settings: numbers, durations, sizes, names, addresses.

Each gets the value and its place and returns what the program works with, or raises ConfigError with one sentence:
the value, what it is not, and what is allowed.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping

from cluster.config.fields import ConfigError, Location, Reader, did_you_mean, name_of, shown, text

UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
UNITS_BYTES = {"B": 1, "KB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
MAX_DISTANCE_S = 10.0  # nothing on Earth is further; who writes 80 meant 80ms

_AMOUNT = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile("".join(f"(?:(?P<{unit}>{_AMOUNT}){unit})?" for unit in UNITS_S))
_SIZE = re.compile(rf"({_AMOUNT}) ?({'|'.join(UNITS_BYTES)})")
_IMPORT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INSTANCE = re.compile(r"instance-[1-9][0-9]{0,8}")


def duration(value: object) -> float:
    """Seconds of `250ms`, `5s`, `1m`, `1h30m`, `1d` or a number of seconds. Raises ConfigError with a sentence."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = _finite(value)
    elif isinstance(value, str) and re.fullmatch(_AMOUNT, value):
        seconds = float(value)
    elif isinstance(value, str) and value and (match := _DURATION.fullmatch(value)):
        seconds = sum(float(amount) * UNITS_S[unit] for unit, amount in match.groupdict().items() if amount)
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{shown(value)} is not a duration (250ms, 5s, 1m, 1h30m, or a number of seconds)")
    return seconds


def seconds(*, zero: bool = False) -> Reader:
    """A duration; `zero`: whether none at all makes sense."""

    def read(value: object, at: Location) -> float:
        found = duration(value)
        if found == 0 and not zero:
            raise ConfigError(f"{shown(value)} is not a duration above zero")
        return found

    return read


def distance_ms(value: object, at: Location) -> float:
    """A round-trip time as a duration, in milliseconds to the microsecond."""
    found = duration(value)
    if found > MAX_DISTANCE_S:
        raise ConfigError(f"{shown(value)} is {found:g} seconds, which is no distance between regions; write it as 80ms")
    return round(found * 1000, 3)


def whole(low: int, high: int | None = None, kind: str = "whole number") -> Reader:
    allowed = f"at least {low}" if high is None else f"{low} to {high}"

    def read(value: object, at: Location) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ConfigError(f"{shown(value)} is not a {kind} ({allowed})")
        return value

    return read


def number(low: float = 0, high: float = math.inf, *, above: bool = False, kind: str = "number") -> Reader:
    """`above`: more than `low`, not just at least."""
    start = f"above {low:g}" if above else f"{low:g} to" if high < math.inf else f"at least {low:g}"
    allowed = start if high == math.inf else f"{start} {high:g}" if not above else f"{start}, at most {high:g}"

    def read(value: object, at: Location) -> float:
        found = _finite(value)
        if not low <= found <= high or (above and found == low) or math.isinf(found):
            raise ConfigError(f"{shown(value)} is not a {kind} ({allowed})")
        return found

    return read


def flag(value: object, at: Location) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{shown(value)} is not a switch (true, false)")
    return value


def choice(kind: str, *allowed: str) -> Reader:
    def read(value: object, at: Location) -> str:
        if value not in allowed:
            hint = did_you_mean(value, allowed)
            raise ConfigError(f"{shown(value)} is not a {kind} ({', '.join(allowed)}){hint}")
        return str(value)

    return read


def size_bytes(value: object, at: Location) -> int:
    """A number of bytes, or text like 100MiB (2^20) or 10MB (10^6)."""
    found: float = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if isinstance(value, str) and len(value) <= 40 and (match := _SIZE.fullmatch(value)):
        found = float(match[1]) * UNITS_BYTES[match[2]]
    if found < 1:
        raise ConfigError(f"{shown(value)} is not a size (a number of bytes, 100MiB, 10MB)")
    return int(found)


def region(value: object, at: Location) -> str:
    return name_of("region")(value)


def version(value: object, at: Location) -> str:
    if not _VERSION.fullmatch(text(value, "version")):
        raise ConfigError(f"{shown(value)} is not a version (letters, digits, . - and _; at most 63; a letter or digit first)")
    return str(value)


def instance_name(value: object) -> str:
    if not _INSTANCE.fullmatch(text(value, "name of an instance")):
        raise ConfigError(f"{shown(value)} is not the name of an instance (instance-1, instance-2, ...)")
    return str(value)


def import_name(value: object, at: Location) -> str:
    if not _IMPORT.fullmatch(text(value, "name of an Agent")):
        raise ConfigError(f"{shown(value)} does not name an Agent (module:attribute, like examples.support:agent)")
    return str(value)


def host(value: object, at: Location) -> str:
    given = text(value, "host")
    if not _HOST.fullmatch(given) and not _is_address(given):
        raise ConfigError(f"{shown(value)} is not a host (an IP address or a host name; the port stands on its own)")
    return given


def file_path(value: object, at: Location) -> str:
    """An absolute path; a relative one starts from the folder of the file that is read."""
    given = text(value, "path")
    if not given or not given.isprintable():
        raise ConfigError(f"{shown(value)} is not a path")
    return os.path.normpath(at.folder.absolute() / given)


def cidr(value: object) -> str:
    """A network in its usual form; a bare address is a network of one."""
    given = text(value, "network")
    try:
        return str(ipaddress.ip_network(given))
    except ValueError:
        raise ConfigError(f"{shown(value)} is not a network (10.0.0.0/8, fd00::/8){_without_host_bits(given)}") from None


def network(value: object, at: Location) -> str:
    return cidr(value)


def client_regions(value: object, at: Location) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)} is not a mapping from networks to regions")
    found: dict[str, str] = {}
    for given, name in value.items():
        spot = at.step(given)
        at.log.note(spot.steps)
        network = spot.read(lambda item, _: cidr(item), given)
        if network in found:
            spot.mistake(f"{network} is given twice")
        found |= {str(network): spot.read(region, name)}
    return found


def variable(value: object, at: Location) -> str:
    return text(value, "value of an environment variable")


def variable_name(value: object) -> str:
    if not _VARIABLE.fullmatch(text(value, "name of an environment variable")):
        raise ConfigError(f"{shown(value)} is not the name of an environment variable (letters, digits and _)")
    return str(value)


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


def _is_address(given: str) -> bool:
    try:
        ipaddress.ip_address(given)
    except ValueError:
        return False
    return True


def _without_host_bits(given: str) -> str:
    try:
        return f"; did you mean {ipaddress.ip_network(given, strict=False)}?"
    except ValueError:
        return ""
