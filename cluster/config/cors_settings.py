"""`http.cors`: which web pages of other origins may call the gateways from a browser?

An origin is read as browsers write it (scheme, host, port unless it is the scheme's own, in lower case), because one that is
written in any other way would never match. How requests are answered: deployments/gateway/cors.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.config import values
from cluster.config.fields import block, each, read_block, reads, setting, text
from cluster.config.mistakes import ConfigError, Location, shown

ANY = "*"
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_NAME = r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]"
_ORIGIN = rf"({_SCHEME})://({_NAME})(?::([0-9]{{1,5}}|\*))?"
_METHOD = r"[A-Za-z-]{1,32}|\*"
_ALLOWED = "like https://app.example.com, https://*.example.com, http://localhost:*, or *"


@reads({"type": "string", "pattern": rf"^(?:\*|null|{_ORIGIN})$"})
def origin(value: object, at: Location) -> str:
    """An origin, or a pattern of origins: `*` in place of subdomains or of the port."""
    given = text(value, "origin")
    if given in (ANY, "null"):
        return given
    match = re.fullmatch(_ORIGIN, given)
    if match is None:
        raise ConfigError(f"{shown(given)} is not an origin ({_ALLOWED}){_hint(given)}")
    scheme, host, port = match[1].lower(), match[2].lower(), match[3]
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


@reads({"type": "string", "minLength": 1})
def expression(value: object, at: Location) -> str:
    pattern = text(value, "regular expression")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{shown(pattern)} is not a regular expression: {error}") from None
    if not pattern:
        raise ConfigError("an empty regular expression matches no origin; remove the key")
    return pattern


@reads({"type": "string", "pattern": f"^(?:{_METHOD})$"})
def method(value: object, at: Location) -> str:
    name = text(value, "method")
    if not re.fullmatch(_METHOD, name):
        raise ConfigError(f"{shown(value)} is not a method (GET, POST, …, or * for all)")
    return name.upper()


@dataclass(frozen=True, slots=True)
class CorsSettings:
    """Read it with `read_cors`: some settings exclude each other."""

    origins: tuple[str, ...] = setting(
        "origins",
        each(origin, "origins"),
        "Origins whose pages may read responses. `*` stands for subdomains, a port, or every origin.",
        default=(),
    )
    origin_regex: str | None = setting(
        "originRegex", expression, "Further origins: those that match this regular expression as a whole.", default=None
    )
    methods: tuple[str, ...] = setting("methods", each(method, "methods"), "Methods that pages may use.", default=(ANY,))
    headers: tuple[str, ...] = setting(
        "headers", each(values.header_name, "headers"), "Request headers that pages may set.", default=(ANY,)
    )
    expose_headers: tuple[str, ...] = setting(
        "exposeHeaders",
        each(values.header_name, "headers"),
        "Response headers that pages may read, besides SwiftClaw's own.",
        default=(),
    )
    credentials: bool = setting(
        "credentials", values.flag, "Whether pages may send cookies and HTTP authentication.", default=False
    )
    max_age_s: float = setting(
        "maxAge", values.seconds(zero=True), "How long browsers may keep the answer to a preflight request.", default=600.0
    )
    private_network: bool = setting(
        "privateNetwork", values.flag, "Whether pages of the public internet may call a gateway in a private network.",
        default=False,
    )  # fmt: skip


@reads(block(CorsSettings).schema)
def read_cors(value: object, at: Location) -> CorsSettings:
    settings = read_block(CorsSettings, value, at)
    if at.clean() and not settings.origins and settings.origin_regex is None:
        raise ConfigError("needs origins or originRegex: the origins of the pages that may call the gateways")
    if settings.credentials and ANY in settings.origins:
        at.step("origins").mistake(
            "* together with credentials would let every web page act for its visitors, and browsers refuse it; "
            "name the origins"
        )
    if settings.credentials and ANY in settings.expose_headers:
        at.step("exposeHeaders").mistake("* means nothing to browsers together with credentials; name the headers")
    return settings


def _hint(given: str) -> str:
    if re.fullmatch(rf"{_ORIGIN}/.*", given):
        return f"; an origin has no path: {given[: given.index('/', given.index('://') + 3)]}"
    if re.fullmatch(rf"(?:{_NAME})(?::[0-9]{{1,5}}|:\*)?", given):
        return f"; did you mean https://{given}?"
    return "" if given.isascii() else "; write the host as browsers send it (xn--…)"
