"""Which session a request belongs to, and the cookie that keeps it.

Named by a header, else the body, else the cookie; with affinity of type client-ip by the address. A cookie that is not a
valid token of this agent counts as absent.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from json import JSONDecoder
from typing import Any

from deployments.balancing.pool import Pool
from deployments.request.exchange import Exchange
from policies.base import Request
from policies.sessions.session_token import Token

COOKIE = "swiftclaw_session"
LONGEST = 256  # characters of a session's name; what is longer is told apart by these
_NAMED = re.compile(rb"x-(?:[a-z0-9-]+-)?session-id")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Session:
    """`name` None: the request belongs to none. `by_cookie`: it is kept by a cookie, `token` what that one said.

    `fresh`: it was made for this request.
    """

    name: str | None
    by_cookie: bool = False
    token: Token | None = None
    fresh: bool = False


NONE = Session(None)


def in_header(exchange: Exchange) -> str | None:
    """`x-session-id`, or `x-<vendor>-session-id`."""
    for name, value in exchange.headers:
        if name.endswith(b"session-id") and value and _NAMED.fullmatch(name):
            return value.decode("latin-1")[:LONGEST]
    return None


def resolve(exchange: Exchange, pool: Pool, in_body: str | None, address: str | None) -> Session:
    """The session of a request to an agent with or without affinity."""
    named = in_header(exchange) or (in_body[:LONGEST] if in_body else None)
    if pool.affinity is None or pool.tokens is None:
        return Session(named) if named else NONE
    kind = pool.affinity.type
    if kind == "client-ip":
        return Session(named or address)
    if kind == "header":
        return Session(named) if named else NONE
    token = pool.tokens.read(_cookie(exchange), pool.name, time.time())
    if token is not None and named in (None, token.session):
        return Session(token.session, by_cookie=True, token=token)
    return Session(named or secrets.token_hex(16), by_cookie=True, fresh=named is None)


def set_cookie(exchange: Exchange, pool: Pool, request: Request, session: Session) -> bytes | None:
    """The Set-Cookie value that the answer needs: a new session, another home, or a token that ages."""
    if not session.by_cookie or pool.tokens is None or session.name is None:
        return None
    home = pool.home(request)
    if home is None:
        return None
    now, held, member = time.time(), session.token, home.member
    if held is not None and held.instance == member.id and not pool.tokens.due(held, now):
        return None
    value = pool.tokens.issue(pool.name, session.name, member.id, member.version, now)
    secure = "; Secure" if exchange.scope.get("scheme") in ("https", "wss") else ""
    return f"{COOKIE}={value}; Max-Age={int(pool.tokens.ttl_s)}; Path=/; HttpOnly; SameSite=Lax{secure}".encode()


def _cookie(exchange: Exchange) -> str | None:
    """By hand: SimpleCookie drops everything when another cookie is one it does not like."""
    for name, value in exchange.headers:
        if name == b"cookie":
            for pair in value.split(b";"):
                key, _, found = pair.strip().partition(b"=")
                if key == COOKIE.encode():
                    return found.decode("latin-1").strip('"')
    return None


def in_message(body: bytes) -> str | None:
    """`session_id` of a message, from as much of its body as is known."""
    return _text(top_level(body, {"session_id"}).get("session_id"))


def in_chat(body: dict[str, Any]) -> str | None:
    """`metadata.session_id`, else `user`."""
    metadata = body.get("metadata")
    return _text(metadata.get("session_id") if isinstance(metadata, dict) else None) or _text(body.get("user"))


def top_level(prefix: bytes, wanted: set[str]) -> dict[str, Any]:
    """Fields of a JSON object of which perhaps only the beginning is known; what cannot be read is not there."""
    text = prefix.decode("utf-8", "ignore")
    decoder, found = JSONDecoder(), dict[str, Any]()
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        return found
    try:
        while len(found) < len(wanted) and text[at : at + 1] in ("{", ","):
            name, at = decoder.raw_decode(text, _skip(text, at + 1))
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                break
            value, at = decoder.raw_decode(text, _skip(text, at + 1))
            if name in wanted:
                found[name] = value
            at = _skip(text, at)
    except (ValueError, RecursionError):  # no JSON, or a number of too many digits
        pass
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
