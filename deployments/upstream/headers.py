"""Which headers cross the gateway? Hop-by-hop headers end here; internal ones never leave the cluster."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from cluster.messages import (
    KEY_HEADER,
    LIMIT_HEADER,
    LOAD_HEADER,
    ORIGIN_HEADER,
    REFUSED_HEADER,
    SESSION_HEADER,
    SESSION_MOVED_HEADER,
)
from deployments.balancing.backend import LoadReport
from deployments.request.client_address import (
    FORWARDED_HEADER,
    HOST_HEADER,
    PREFIX_HEADER,
    PROTO_HEADER,
    ClientAddresses,
    Origin,
    forwarded,
)
from deployments.request.record import RequestRecord
from deployments.types import Headers, SentHeaders

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"http2-settings")
)  # fmt: skip
_OURS = frozenset((KEY_HEADER, LIMIT_HEADER, LOAD_HEADER, ORIGIN_HEADER, REFUSED_HEADER, SESSION_HEADER, SESSION_MOVED_HEADER))
_SET_BY_US = frozenset((b"expect", FORWARDED_HEADER, PROTO_HEADER, HOST_HEADER, PREFIX_HEADER, b"x-request-id"))
_RESPONSE_ONLY = frozenset((b"x-swiftclaw-instance", b"x-swiftclaw-version"))
_NOT_SENT = _HOP_BY_HOP | _OURS | _SET_BY_US | _RESPONSE_ONLY
_NOT_RETURNED = _HOP_BY_HOP | _OURS | _RESPONSE_ONLY | {b"date", b"x-request-id", b"x-swiftclaw-region"}

_UNBUFFERED = (b"x-accel-buffering", b"no")  # proxies in front pass each event on at once
_VIA = {version: (b"via", f"{version} swiftclaw".encode()) for version in ("1.0", "1.1")}  # of the hop from the client

# What proxies say of a request besides X-Forwarded-*; only a trusted proxy may say it.
_X_FORWARDED = b"x-forwarded-"
_CLAIMS = frozenset(
    (b"forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"client-ip", b"true-client-ip", b"cf-connecting-ip",
     b"cf-connecting-ipv6", b"fastly-client-ip", b"x-original-forwarded-for", b"x-original-host", b"x-original-proto",
     b"x-original-url", b"x-rewrite-url", b"x-scheme", b"x-url-scheme", b"front-end-https", b"x-envoy-external-address",
     b"x-script-name")
)  # fmt: skip


def for_instance(
    record: RequestRecord, clients: ClientAddresses, key: str, session: str | None, *, mounted: bool = False
) -> SentHeaders:
    """The client's headers without those of this hop, plus the forwarding headers, the request id, the key and the session.

    `mounted`: the request is for the mounted app, which sees the request as its client sent it.
    """
    named = _named_by_connection(record.headers)
    peer = record.client[0] if record.client else None
    trusted = clients.trusts(peer)
    headers = [header for header in record.headers if header[0] not in named and _crosses(header[0], trusted)]
    origin = clients.origin(record)
    hops = peer or "unknown"
    if trusted:
        hops = ", ".join([*forwarded(record.headers), hops])
    headers += (
        (b"x-request-id", record.request_id.encode()),
        (FORWARDED_HEADER, hops.encode("latin-1")),
        (PROTO_HEADER, origin.scheme.encode()),
        (HOST_HEADER, origin.host),
        (KEY_HEADER, key.encode()),
        _VIA.get(record.http_version, _VIA["1.1"]),
    )
    if mounted:
        headers.append((ORIGIN_HEADER, _origin(origin, record.server)))
    if session is not None:
        headers.append((SESSION_HEADER, quote(session, errors="surrogatepass").encode()))
    return headers


def _crosses(name: bytes, trusted: bool) -> bool:
    return _verdict(name, trusted) if len(name) <= 64 else _verdict.__wrapped__(name, trusted)  # long ones are not kept


@lru_cache(2048)
def _verdict(name: bytes, trusted: bool) -> bool:
    """Whether a header of the client is sent on. WSGI and CGI apps cannot tell X_Forwarded_For from X-Forwarded-For."""
    plain = name.replace(b"_", b"-")
    claim = plain.startswith(_X_FORWARDED) or plain in _CLAIMS
    return plain not in _NOT_SENT and not (claim and (name != plain or not trusted))


def _origin(origin: Origin, server: tuple[str, int | None] | None) -> bytes:
    """For `MountedApp`: scheme, client, gateway's address, and prefix, as JSON."""
    client = (origin.address, origin.port) if origin.address is not None else None
    return json.dumps((origin.scheme, client, server, origin.prefix.decode("latin-1"))).encode()


@lru_cache(64)
def limit(most: int) -> tuple[bytes, bytes]:
    """The header that states how many requests the instance may have in flight; sent with each attempt."""
    return LIMIT_HEADER, str(most).encode()


class Head(NamedTuple):
    """The head of an instance's response, parsed."""

    headers: SentHeaders  # for the client
    streamed: bool  # its length is unknown
    events: bool  # it is an event stream
    report: LoadReport | None
    refused: bytes | None  # why the instance did not execute the request; None: it did


def from_instance(status: int, headers: Headers) -> Head:
    returned, streamed, report = [], True, None
    refused: bytes | None = None
    events = False
    named = _named_by_connection(headers)
    for name, value in headers:
        lower = name.lower()
        if lower not in _NOT_RETURNED and lower not in named:
            if lower == b"content-length":
                if status == 204:  # has no content, and no length either (RFC 9110, section 8.6)
                    continue
                streamed = False
            elif lower == b"content-type":
                events = value[:17].lower() == b"text/event-stream"
            returned.append((lower, value))
        elif lower == LOAD_HEADER:
            report = _report(value)
        elif lower == REFUSED_HEADER:
            refused = value if status == 503 else None
    if events and not any(name == _UNBUFFERED[0] for name, _ in returned):
        returned.append(_UNBUFFERED)
    return Head(returned, streamed, events, report, refused)


def _report(value: bytes) -> LoadReport | None:
    fields = value.split(b" ")
    if len(fields) < 2 or not (fields[0].isdigit() and fields[1].isdigit()):
        return None
    return LoadReport(in_flight=int(fields[0]), on_arrival=int(fields[1]))


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Headers that the sender's Connection headers restrict to its hop."""
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if len(name) == 10 and name.lower() == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            named |= frozenset(token.strip().lower() for token in value.split(b","))
    return named
