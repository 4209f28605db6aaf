"""Reads session tokens of versions up to 0.1, which were enciphered as well as signed. Delete this file in 0.3.

They were MAC + body, the body XORed with a key stream of HMAC-SHA256 in counter mode; the MAC was over the plain text.
Without this, an upgrade would end every session that is in use; a session's next cookie is of the new form.
"""

from __future__ import annotations

import hmac

MAC_BYTES = 16


def deciphered(key: bytes, framed_agent: bytes, sealed: bytes) -> bytes | None:
    """The signed text, or None: not a token that this key made for this agent."""
    mac, body = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
    blocks = (hmac.digest(key, b"hide" + mac + n.to_bytes(4, "big"), "sha256") for n in range((len(body) + 31) // 32))
    plain = bytes(a ^ b for a, b in zip(body, b"".join(blocks), strict=False))
    expected = hmac.digest(key, b"sign" + framed_agent + plain, "sha256")[:MAC_BYTES]
    return plain if hmac.compare_digest(expected, mac) else None
