"""What does a client carry so that its session is found again?

A short text for a cookie: session, instance, version and expiry, encrypted and signed for one agent. Whatever is not
exactly what a holder of a key made for that agent, and still in time, reads as None: forged, cut off, foreign, expired.
The first key signs, all of them verify, so a key is rotated by putting a new one in front and dropping the last after
the ttl. The ttl is idle time: issue a new token when `due`. Not a login: it says where, not who.
Source: HMAC-SHA256 (RFC 2104), used as a synthetic IV (RFC 5297's construction) and, by counter, as the key stream.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Sequence
from dataclasses import dataclass

MAC_BYTES = 16
MOST_CHARACTERS = 2048  # a cookie has 4096 for everything
DUE_SHARE = 0.1  # a new token after a tenth of the ttl keeps most answers free of Set-Cookie


@dataclass(frozen=True, slots=True)
class Token:
    session: str
    instance: str
    version: str
    expires: int  # seconds since the epoch


class Tokens:
    """`keys`: at least one, 16 bytes or more each. Times are seconds since the epoch: tokens outlive processes."""

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
        plain = b"".join([expires.to_bytes(8, "big"), *map(_framed, (session, instance, version))])
        key = self._keys[0]
        mac = _mac(key, agent, plain)
        token = urlsafe_b64encode(mac + _crypt(key, mac, plain)).rstrip(b"=").decode()
        if len(token) > MOST_CHARACTERS:
            raise ValueError(f"a session token may have {MOST_CHARACTERS} characters, not {len(token)}")
        return token

    def read(self, token: str | None, agent: str, now_unix_s: float) -> Token | None:
        """None for anything that is not a valid token of this agent. Never raises."""
        if not token or len(token) > MOST_CHARACTERS:
            return None
        try:
            sealed = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except (NotBase64, ValueError):
            return None
        if urlsafe_b64encode(sealed).rstrip(b"=").decode() != token:  # one text per token, no look-alikes
            return None
        mac, body = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
        for key in self._keys:
            plain = _crypt(key, mac, body)
            if hmac.compare_digest(_mac(key, agent, plain), mac):
                found = _parsed(plain)
                return found if found is not None and found.expires > now_unix_s else None
        return None

    def due(self, token: Token, now_unix_s: float) -> bool:
        """Whether enough of its time is gone that the answer should carry a new one."""
        return token.expires - now_unix_s < self.ttl_s * (1 - DUE_SHARE)


def _framed(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > 0xFFFF:
        raise ValueError("a name in a session token may have 65535 bytes")
    return len(encoded).to_bytes(2, "big") + encoded


def _parsed(plain: bytes) -> Token | None:
    """What `issue` framed; None if it is not that (a key used for something else)."""
    fields, at = [], 8
    while at + 2 <= len(plain):
        end = at + 2 + int.from_bytes(plain[at : at + 2], "big")
        fields.append(plain[at + 2 : end])
        at = end
    if at != len(plain) or len(fields) != 3:
        return None
    try:
        session, instance, version = (field.decode("utf-8", "surrogatepass") for field in fields)
    except UnicodeDecodeError:
        return None
    return Token(session, instance, version, int.from_bytes(plain[:8], "big"))


def _mac(key: bytes, agent: str, plain: bytes) -> bytes:
    return hmac.digest(key, b"sign" + _framed(agent) + plain, "sha256")[:MAC_BYTES]


def _crypt(key: bytes, mac: bytes, text: bytes) -> bytes:
    """The same both ways."""
    size = len(text)
    blocks = (hmac.digest(key, b"hide" + mac + count.to_bytes(4, "big"), "sha256") for count in range((size + 31) // 32))
    stream = b"".join(blocks)[:size]
    return (int.from_bytes(text, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")
