"""What crosses the gateway and what does not: hop-by-hop headers end here, internal ones never leave the cluster."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from cluster.messages import KEY_HEADER, LIMIT_HEADER, LOAD_HEADER, REFUSED_HEADER, SESSION_HEADER
from deployments.backend import Report
from deployments.clients import FORWARDED_HEADER, Clients, forwarded
from deployments.exchange import Exchange
from deployments.upstream import Headers

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
_OURS = frozenset((KEY_HEADER, LIMIT_HEADER, LOAD_HEADER, REFUSED_HEADER, SESSION_HEADER))
_SET_BY_US = frozenset((b"expect", FORWARDED_HEADER, b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"))
_TOLD = frozenset((b"x-swiftclaw-instance", b"x-swiftclaw-version"))  # what the cluster says of itself
_NOT_SENT = _HOP_BY_HOP | _OURS | _SET_BY_US | _TOLD
_LIMIT = LIMIT_HEADER.decode()
_NOT_RETURNED = _HOP_BY_HOP | _OURS | {b"x-request-id", b"x-swiftclaw-instance", b"x-swiftclaw-version", b"x-swiftclaw-region"}


def for_instance(exchange: Exchange, clients: Clients, key: str, session: str | None) -> list[tuple[str, str]]:
    """The client's, less what ends at this hop, plus what the instance is to know."""
    named = _named_by_connection(exchange)
    headers = [
        (name.decode("latin-1"), value.decode() if value.isascii() else _decoded(value))
        for name, value in exchange.headers
        if name not in _NOT_SENT and name not in named
    ]
    client = exchange.scope.get("client")
    peer = client[0] if client else None
    scheme = exchange.scope.get("scheme", "http").replace("ws", "http")
    host = _text(exchange, b"host")
    hops = [peer or "unknown"]
    if clients.trusts(peer):  # a proxy of ours: what it says of the client stands
        hops = [*forwarded(exchange.headers), *hops]
        scheme, host = _text(exchange, b"x-forwarded-proto") or scheme, _text(exchange, b"x-forwarded-host") or host
    headers += (
        ("x-request-id", exchange.request_id),
        ("x-forwarded-for", ", ".join(hops)),
        ("x-forwarded-proto", scheme),
        ("x-forwarded-host", host),
        (KEY_HEADER.decode(), key),
    )
    if session is not None:
        headers.append((SESSION_HEADER.decode(), quote(session, errors="surrogatepass")))
    return headers


def limit(most: int) -> tuple[str, str]:
    """How many requests the instance may have in flight, as of this moment: to be sent with each attempt."""
    return _LIMIT, str(most)


class Head(NamedTuple):
    """An instance's answer, read once."""

    headers: list[tuple[bytes, bytes]]  # for the client
    streamed: bool  # its length is not known
    report: Report | None
    refused: bytes | None  # not executed, and why: another instance may be asked


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


def _report(value: bytes) -> Report | None:
    fields = value.split(b" ")
    if len(fields) < 2 or not (fields[0].isdigit() and fields[1].isdigit()):
        return None
    return Report(in_flight=int(fields[0]), on_arrival=int(fields[1]))


def _named_by_connection(exchange: Exchange) -> frozenset[bytes]:
    """Headers that the client's Connection header declares to be for this hop only."""
    value = exchange.header(b"connection")
    if value is None or value.lower() in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(token.strip().lower() for token in value.split(b","))


def _decoded(value: bytes) -> str:
    """The HTTP client writes UTF-8, so what is UTF-8 arrives as it was."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _text(exchange: Exchange, name: bytes) -> str:
    return (exchange.header(name) or b"").decode("latin-1")
