"""Which session does a request belong to? And the cookie that keeps it there.

A header names the session, else the body, else the cookie; with affinity of type client-ip, the client's address does. With
`learn`, what the agent's own app has named its session comes first. A cookie that is not a valid token of this agent counts
as absent; a client without cookies may keep the token itself and send it back as TOKEN_HEADER. The token:
policies/sessions/session_token.py.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

from cluster.config import LearnedSession, SessionAffinity
from cluster.messages import Member
from deployments.request.json_body import top_level
from deployments.request.record import RequestRecord
from deployments.types import Headers, SentHeaders
from policies.sessions.session_token import Token, Tokens

COOKIE = "swiftclaw_session"  # the beginning of its name; the rest is one per agent and cluster
TOKEN_HEADER = b"x-swiftclaw-session-token"
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
    @property
    def cookie(self) -> str: ...
    def remembers(self, session: str) -> bool: ...


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


def in_header(record: RequestRecord) -> str | None:
    """`x-session-id`, or `x-<vendor>-session-id`."""
    for name, value in record.headers:
        if name.endswith(b"session-id") and value and _NAMED.fullmatch(name):
            return _named(value)
    return None


def resolve(record: RequestRecord, agent: SessionOwner, in_body: str | None, address: str | None) -> Session:
    """The session of a request. `in_body`: the name in its body; `address`: the client's."""
    named = in_header(record) or (in_body[:LONGEST] if in_body else None)
    if agent.affinity is None or agent.tokens is None:
        return Session(named) if named else NONE
    learned = _learned(record, agent.affinity.learn)
    if learned is not None:
        return Session(learned)
    kind = agent.affinity.type
    if kind == "client-ip":
        return Session(named or address)
    if kind == "header":
        return Session(named) if named else NONE
    token = _token(record, agent, agent.tokens)
    if token is not None and named in (None, token.session):
        return Session(token.session, by_cookie=True, token=token)
    return Session(named or secrets.token_hex(16), by_cookie=True, fresh=named is None)


def token_headers(agent: SessionOwner, session: Session, home: Member, *, secure: bool) -> SentHeaders:
    """The response headers that give the client its token, as a cookie and by itself.

    None while the token that it sent is good: the same home, and not yet to be renewed. `secure`: the client uses TLS.
    """
    tokens = agent.tokens
    if not session.by_cookie or tokens is None or session.name is None:
        return []
    now, held = time.time(), session.token
    if held is not None and held.instance == home.id and not tokens.due(held, now):
        return []
    value = tokens.issue(agent.name, session.name, home.id, home.version, now)
    flags = "; Secure" if secure else ""
    cookie = f"{agent.cookie}={value}; Max-Age={int(tokens.ttl_s)}; Path=/; HttpOnly; SameSite=Lax{flags}"
    return [(b"set-cookie", cookie.encode()), (TOKEN_HEADER, value.encode())]


@lru_cache(1024)
def cookie_name(cluster_key: str, agent: str) -> str:
    """One per agent and cluster: browsers send a host's cookies to every port of it, and keep one of each name."""
    return f"{COOKIE}_{blake2b(f'{cluster_key}/{agent}'.encode(), digest_size=4).hexdigest()}"


def named_by_app(headers: Headers, learn: LearnedSession | None) -> str | None:
    """The session that the app's response creates."""
    if learn is None:
        return None
    if learn.header:
        wanted = learn.header.lower().encode()
        return next((_named(value) for name, value in headers if name == wanted and value), None)
    values = [value.split(b";")[0] for name, value in headers if name == b"set-cookie"]
    return next((_named(content) for content in _contents(values, learn.cookie or "") if content), None)


def _learned(record: RequestRecord, learn: LearnedSession | None) -> str | None:
    """The app's session that the request continues."""
    if learn is None:
        return None
    if learn.header:
        value = record.header(learn.header.lower().encode())
        return _named(value) if value else None
    return next((_named(content) for content in _cookies(record, learn.cookie or "") if content), None)


def _token(record: RequestRecord, agent: SessionOwner, tokens: Tokens) -> Token | None:
    """The first valid token: the host may have cookies of other clusters, or of older versions, under the same names."""
    header, now = record.header(TOKEN_HEADER), time.time()
    candidates = [header] if header else []
    for content in (*candidates, *_cookies(record, agent.cookie), *_cookies(record, COOKIE)):
        token = tokens.read(content.decode("latin-1").strip('"'), agent.name, now, agent.remembers)
        if token is not None:
            return token
    return None


def _cookies(record: RequestRecord, wanted: str) -> list[bytes]:
    return _contents([value for name, value in record.headers if name == b"cookie"], wanted)


def _contents(values: Iterable[bytes], wanted: str) -> list[bytes]:
    """Parsed by hand: SimpleCookie drops every cookie when it cannot parse one of them."""
    pairs = (pair.strip().partition(b"=") for value in values for pair in value.split(b";"))
    return [content for key, _, content in pairs if key == wanted.encode()]


def _named(value: bytes) -> str:
    """The name in a header's value: UTF-8, as it would be in a body; what is not, by RFC 9110's reading of old."""
    try:
        return value.decode()[:LONGEST]
    except UnicodeDecodeError:
        return value.decode("latin-1")[:LONGEST]


def in_message(body: bytes) -> str | None:
    """`session_id` of a message, from as much of its body as has been read."""
    return _text(top_level(body, {"session_id"}).get("session_id"))


def in_chat(body: dict[str, Any]) -> str | None:
    """`metadata.session_id`, else `user`."""
    metadata = body.get("metadata")
    return _text(metadata.get("session_id") if isinstance(metadata, dict) else None) or _text(body.get("user"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
