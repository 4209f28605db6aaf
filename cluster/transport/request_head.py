"""Which request heads does a server accept? What is not supported, or could be understood in two ways, is rejected.

RFC 9112, sections 3.2, 6.1 and 6.3 (request smuggling); the limits are those of a connection. All pure.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate
from http import HTTPStatus

from policies.errors import BadRequest

HeaderList = list[tuple[bytes, bytes]]

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class RequestRejected(Exception):
    """The request is answered with an error, and nothing more is read from its connection."""

    def __init__(self, status: int, reason: str, headers: tuple[str, ...] = ("connection: close",)) -> None:
        self.status, self.reason, self.headers = status, reason, headers

    def answer(self, *, with_body: bool = True) -> bytes:
        error = {"type": BadRequest.type, "message": self.reason, "agent": None, "request_id": None}
        body = json.dumps({"error": error}).encode()
        lines = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"date: {formatdate(usegmt=True)}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *self.headers,
            "\r\n",
        )
        return "\r\n".join(lines).encode() + (body if with_body else b"")


_OTHER_VERSION = RequestRejected(
    426,
    "sec-websocket-version: only 13 is supported",
    ("connection: close, upgrade", "upgrade: websocket", "sec-websocket-version: 13"),
)


def check_head(
    version: str, method: bytes, target: bytes, headers: HeaderList, *, target_bytes: int, header_count: int
) -> bytes:
    """The target as a path; the authority of an absolute one replaces the Host header. Raises RequestRejected."""
    if version not in ("1.1", "1.0"):
        raise RequestRejected(505, f"HTTP/{version} is not supported (HTTP/1.1, HTTP/1.0)")
    if method in (b"CONNECT", b"TRACE"):
        raise RequestRejected(501, f"method {method.decode()} is not supported")
    if len(target) > target_bytes:
        raise RequestRejected(414, f"the request target exceeds {target_bytes} bytes")
    if len(headers) > header_count:
        raise RequestRejected(431, f"the request exceeds {header_count} headers")
    host: bytes | None = None
    hosts, codings, with_length = 0, [], False
    for name, value in headers:
        if name == b"host":
            host, hosts = value, hosts + 1
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"content-length":
            with_length = True
    if hosts > 1 or (not hosts and version == "1.1"):
        raise RequestRejected(400, "host: exactly one host header is required")
    if host is not None and not _HOST.fullmatch(host):
        raise RequestRejected(400, "host: not a valid host name")
    if codings and (codings != [b"chunked"] or with_length or version != "1.1"):
        raise RequestRejected(400, "transfer-encoding: only `chunked` is allowed, once, in HTTP/1.1 and without content-length")
    if target.startswith(b"/") and b"#" not in target:
        return target
    return _path_of(method, target, headers)


def check_handshake(method: bytes, headers: HeaderList) -> None:
    """Of a WebSocket. Raises RequestRejected."""
    has_body = any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
    if method != b"GET" or has_body:
        raise RequestRejected(400, "a WebSocket handshake must be a GET request without a body")
    if [value for name, value in headers if name == b"sec-websocket-version"] != [b"13"]:
        raise _OTHER_VERSION


def without_upgrade(method: bytes, target: bytes, version: str, headers: HeaderList) -> bytes:
    """The head again, for a parser that must not take what follows for another protocol."""
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _path_of(method: bytes, target: bytes, headers: HeaderList) -> bytes:
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:
        _take_authority(absolute[2], headers)
        rest = absolute[3]
        if method == b"OPTIONS" and not rest:
            rest = b"*"  # RFC 9112, section 3.2.4
        target = rest if rest.startswith(b"/") or rest == b"*" else b"/" + rest
    if b"#" in target or not (target.startswith(b"/") or (target == b"*" and method == b"OPTIONS")):
        raise RequestRejected(400, "the request target is not a path")
    return target


def _take_authority(authority: bytes, headers: HeaderList) -> None:
    """The target's authority takes the place of the Host header (RFC 9112, section 3.2.2)."""
    if not authority or not _HOST.fullmatch(authority):
        raise RequestRejected(400, "the request target has no valid host name")
    headers[:] = [(name, value) for name, value in headers if name != b"host"]
    headers.append((b"host", authority.lower()))
