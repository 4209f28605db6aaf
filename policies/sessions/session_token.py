"""What does a client carry so that its session is found again?

A short text for a cookie: session, instance, version and expiry, signed for one agent. Whatever is not exactly what a
holder of a key made for that agent, and still in time, reads as None: forged, cut off, foreign, expired. The first key
signs, all of them verify: to rotate keys, put a new one in front and drop the last after the ttl. The ttl is idle time:
issue a new token when `due`. A session that is still in use keeps its token whatever time it is: clocks are set, and hosts
disagree. Not encrypted: it holds nothing that a response does not show its client. Not a login: it
says where, not who.
Source: HMAC-SHA256 (RFC 2104), truncated to 128 bits.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policies.sessions.legacy_token import deciphered

MAC_BYTES = 16
MAX_CHARACTERS = 2048  # a cookie has 4096 for everything
DUE_SHARE = 0.1  # a new token after a tenth of the ttl keeps most responses free of Set-Cookie


@dataclass(frozen=True, slots=True)
class Token:
    session: str
    instance: str
    version: str
    expires: int  # seconds since the epoch


class Tokens:
    """Issues and reads tokens. `keys`: at least one, 16 bytes or more each. Times are seconds since the epoch: tokens
    outlive processes."""

    __slots__ = ("_keys", "ttl_s")

    def __init__(self, keys: Sequence[bytes], ttl_s: float = 3600.0) -> None:
        if not keys or any(len(key) < MAC_BYTES for key in keys):
            raise ValueError(f"at least one key, of {MAC_BYTES} bytes or more each")
        self._keys = tuple(keys)
        self.ttl_s = ttl_s

    def __repr__(self) -> str:
        return f"<Tokens: {len(self._keys)} keys, ttl {self.ttl_s:g} s>"

    def issue(self, agent: str, session: str, instance: str, version: str, now_unix_s: float) -> str:
        """Raises ValueError when the names are too long for a cookie."""
        expires = int(now_unix_s + self.ttl_s)
        body = b"".join([expires.to_bytes(8, "big"), *map(_framed, (session, instance, version))])
        token = _encoded(_mac(self._keys[0], agent, body) + body)
        if len(token) > MAX_CHARACTERS:
            raise ValueError(f"a session token may have {MAX_CHARACTERS} characters, not {len(token)}")
        return token

    def read(
        self, token: str | None, agent: str, now_unix_s: float, in_use: Callable[[str], bool] = lambda session: False
    ) -> Token | None:
        """None for anything that is not a valid token of this agent. Never raises.

        `in_use`: whether the session has been used within the ttl, by a clock that is never set; its token has not expired.
        """
        if not token or len(token) > MAX_CHARACTERS:
            return None
        try:
            signed = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except (NotBase64, ValueError):
            return None
        if _encoded(signed) != token:  # one text per token, no look-alikes
            return None
        for key in self._keys:
            body = _verified(key, agent, signed)
            if body is None:
                body = deciphered(key, _framed(agent), signed)
            if body is not None:
                parsed = _parsed(body)
                valid = parsed is not None and (parsed.expires > now_unix_s or in_use(parsed.session))
                return parsed if valid else None
        return None

    def due(self, token: Token, now_unix_s: float) -> bool:
        """Whether the response should carry a new one: enough of its time is gone, or it has more than there can be, as
        the clock was set back (the cookie would end at the client before the token does)."""
        return not 1 - DUE_SHARE <= (token.expires - now_unix_s) / self.ttl_s <= 1 + DUE_SHARE


def _encoded(signed: bytes) -> str:
    return urlsafe_b64encode(signed).rstrip(b"=").decode()


def _verified(key: bytes, agent: str, signed: bytes) -> bytes | None:
    """The body, if this key signed it for this agent."""
    mac, body = signed[:MAC_BYTES], signed[MAC_BYTES:]
    return body if hmac.compare_digest(_mac(key, agent, body), mac) else None


def _mac(key: bytes, agent: str, body: bytes) -> bytes:
    return hmac.digest(key, b"session" + _framed(agent) + body, "sha256")[:MAC_BYTES]


def _framed(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > 0xFFFF:
        raise ValueError("a name in a session token may have 65535 bytes")
    return len(encoded).to_bytes(2, "big") + encoded


def _parsed(body: bytes) -> Token | None:
    """What `issue` framed; None if it is not that (a key used for something else)."""
    fields, at = [], 8
    while at + 2 <= len(body):
        end = at + 2 + int.from_bytes(body[at : at + 2], "big")
        fields.append(body[at + 2 : end])
        at = end
    if at != len(body) or len(fields) != 3:
        return None
    try:
        session, instance, version = (field.decode("utf-8", "surrogatepass") for field in fields)
    except UnicodeDecodeError:
        return None
    return Token(session, instance, version, int.from_bytes(body[:8], "big"))
