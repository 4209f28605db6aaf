"""Which session does a request belong to? And the cookie that keeps it there.

A header names the session, else the body, else the cookie; with affinity of type client-ip, the client's address does. A
cookie that is not a valid token of this agent counts as absent. The token itself: policies/sessions/session_token.py.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.config import SessionAffinity
from cluster.messages import Member
from deployments.request.exchange import Exchange
from deployments.request.json_body import top_level
from policies.sessions.session_token import Token, Tokens

COOKIE = "swiftclaw_session"
LONGEST = 256  # characters of a session's name; longer names are cut
_NAMED = re.compile(rb"x-(?:[a-z0-9-]+-)?session-id")


class SessionOwner(Protocol):
    """The session settings of one agent, as a pool has them. `affinity` and `tokens` are None without session affinity."""

    @property
    def name(self) -> str: ...
    @property
    def affinity(self) -> SessionAffinity | None: ...
    @property
    def tokens(self) -> Tokens | None: ...


@dataclass(frozen=True, slots=True)
class Session:
    """`name` None: the request belongs to no session. `fresh`: the session was created for this request.

    `by_cookie`: a cookie keeps it; `token` is what the client's cookie contained, None if it had no valid one.
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


def resolve(exchange: Exchange, agent: SessionOwner, in_body: str | None, address: str | None) -> Session:
    """The session of a request. `in_body`: the name in its body; `address`: the client's."""
    named = in_header(exchange) or (in_body[:LONGEST] if in_body else None)
    if agent.affinity is None or agent.tokens is None:
        return Session(named) if named else NONE
    kind = agent.affinity.type
    if kind == "client-ip":
        return Session(named or address)
    if kind == "header":
        return Session(named) if named else NONE
    token = agent.tokens.read(_cookie(exchange), agent.name, time.time())
    if token is not None and named in (None, token.session):
        return Session(token.session, by_cookie=True, token=token)
    return Session(named or secrets.token_hex(16), by_cookie=True, fresh=named is None)


def set_cookie(exchange: Exchange, agent: SessionOwner, session: Session, home: Member) -> bytes | None:
    """The Set-Cookie value for the response; None while the client's cookie is good: same home, and not yet to be renewed."""
    tokens = agent.tokens
    if not session.by_cookie or tokens is None or session.name is None:
        return None
    now, held = time.time(), session.token
    if held is not None and held.instance == home.id and not tokens.due(held, now):
        return None
    value = tokens.issue(agent.name, session.name, home.id, home.version, now)
    secure = "; Secure" if exchange.scope.get("scheme") in ("https", "wss") else ""
    return f"{COOKIE}={value}; Max-Age={int(tokens.ttl_s)}; Path=/; HttpOnly; SameSite=Lax{secure}".encode()


def _cookie(exchange: Exchange) -> str | None:
    """Parsed by hand: SimpleCookie drops every cookie when it cannot parse one of them."""
    for name, value in exchange.headers:
        if name == b"cookie":
            for pair in value.split(b";"):
                key, _, content = pair.strip().partition(b"=")
                if key == COOKIE.encode():
                    return content.decode("latin-1").strip('"')
    return None


def in_message(body: bytes) -> str | None:
    """`session_id` of a message, from as much of its body as has been read."""
    return _text(top_level(body, {"session_id"}).get("session_id"))


def in_chat(body: dict[str, Any]) -> str | None:
    """`metadata.session_id`, else `user`."""
    metadata = body.get("metadata")
    return _text(metadata.get("session_id") if isinstance(metadata, dict) else None) or _text(body.get("user"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
