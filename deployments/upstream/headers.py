"""Which headers cross the gateway? Hop-by-hop headers end here; internal ones never leave the cluster."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from cluster.messages import KEY_HEADER, LIMIT_HEADER, LOAD_HEADER, REFUSED_HEADER, SESSION_HEADER
from deployments.balancing.backend import LoadReport
from deployments.request.client_address import FORWARDED_HEADER, ClientAddresses, forwarded
from deployments.request.exchange import Exchange
from deployments.types import Headers, SentHeaders

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
_OURS = frozenset((KEY_HEADER, LIMIT_HEADER, LOAD_HEADER, REFUSED_HEADER, SESSION_HEADER))
_SET_BY_US = frozenset((b"expect", FORWARDED_HEADER, b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"))
_RESPONSE_ONLY = frozenset((b"x-swiftclaw-instance", b"x-swiftclaw-version"))
_NOT_SENT = _HOP_BY_HOP | _OURS | _SET_BY_US | _RESPONSE_ONLY
_NOT_RETURNED = _HOP_BY_HOP | _OURS | {b"x-request-id", b"x-swiftclaw-instance", b"x-swiftclaw-version", b"x-swiftclaw-region"}


def for_instance(exchange: Exchange, clients: ClientAddresses, key: str, session: str | None) -> SentHeaders:
    """The client's headers without those of this hop, plus the forwarding headers, the request id, the key and the session."""
    named = _named_by_connection(exchange)
    headers = [header for header in exchange.headers if header[0] not in _NOT_SENT and header[0] not in named]
    client = exchange.scope.get("client")
    peer = client[0] if client else None
    scheme = exchange.scope.get("scheme", "http").replace("ws", "http").encode()
    host = exchange.header(b"host") or b""
    hops = peer or "unknown"
    if clients.trusts(peer):  # a trusted proxy: its statements about the client stand
        hops = ", ".join([*forwarded(exchange.headers), hops])
        scheme, host = exchange.header(b"x-forwarded-proto") or scheme, exchange.header(b"x-forwarded-host") or host
    headers += (
        (b"x-request-id", exchange.request_id.encode()),
        (FORWARDED_HEADER, hops.encode("latin-1")),
        (b"x-forwarded-proto", scheme),
        (b"x-forwarded-host", host),
        (KEY_HEADER, key.encode()),
    )
    if session is not None:
        headers.append((SESSION_HEADER, quote(session, errors="surrogatepass").encode()))
    return headers


@lru_cache(64)
def limit(most: int) -> tuple[bytes, bytes]:
    """The header that states how many requests the instance may have in flight; sent with each attempt."""
    return LIMIT_HEADER, str(most).encode()


class Head(NamedTuple):
    """The head of an instance's response, parsed."""

    headers: SentHeaders  # for the client
    streamed: bool  # its length is unknown
    report: LoadReport | None
    refused: bytes | None  # why the instance did not execute the request; None: it did


def from_instance(status: int, headers: Headers) -> Head:
    returned, streamed, report = [], True, None
    refused: bytes | None = None
    for name, value in headers:
        lower = name.lower()
        if lower not in _NOT_RETURNED:
            if lower == b"content-length":
                streamed = False
            returned.append((lower, value))
        elif lower == LOAD_HEADER:
            report = _report(value)
        elif lower == REFUSED_HEADER:
            refused = value if status == 503 else None
    return Head(returned, streamed, report, refused)


def _report(value: bytes) -> LoadReport | None:
    fields = value.split(b" ")
    if len(fields) < 2 or not (fields[0].isdigit() and fields[1].isdigit()):
        return None
    return LoadReport(in_flight=int(fields[0]), on_arrival=int(fields[1]))


def _named_by_connection(exchange: Exchange) -> frozenset[bytes]:
    """Headers that the client's Connection header restricts to this hop."""
    value = exchange.header(b"connection")
    if value is None or value.lower() in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(token.strip().lower() for token in value.split(b","))
