"""Which address and region does a request come from, and what did its client send to the first trusted proxy?

A proxy is trusted if its address is in `trustedProxies`. Only then do its X-Forwarded headers count. Each proxy adds to their
end, so they are read from the end, as many entries as trusted proxies were passed.
Region: the header `x-swiftclaw-region`, else the smallest network in `clientRegions` that contains the address, else none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from deployments.types import Headers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REGION_HEADER = b"x-swiftclaw-region"
FORWARDED_HEADER = b"x-forwarded-for"
PROTO_HEADER = b"x-forwarded-proto"
HOST_HEADER = b"x-forwarded-host"
PREFIX_HEADER = b"x-forwarded-prefix"
LONGEST_REGION = 64

_HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|(\d[\d.]*)(?::(\d{1,5}))?|([0-9A-Fa-f:.]+)")
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_HOST = re.compile(rb"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_PREFIX = re.compile(rb"(?:/[A-Za-z0-9._~%!$&'()*+;=:@-]+)+")  # no `//`, which browsers take for another host


class ReceivedRequest(Protocol):
    """What this process knows of a request: its headers, and the connection that it arrived on."""

    @property
    def headers(self) -> Headers: ...
    @property
    def scheme(self) -> str: ...
    @property
    def client(self) -> tuple[str, int] | None: ...


class Origin(NamedTuple):
    """A request as the first trusted proxy received it. `port`: 0 if unknown. `prefix`: the path that they removed."""

    address: str | None
    port: int
    scheme: str  # http or https
    host: bytes
    prefix: bytes


class ClientAddresses:
    """The trusted proxies and client networks of the configuration."""

    def __init__(self) -> None:
        self._settings: tuple[dict[str, str], tuple[str, ...]] | None = None
        self.configure({}, ())

    def configure(self, regions: Mapping[str, str], trusted: Sequence[str]) -> None:
        settings = (dict(regions), tuple(trusted))
        if settings == self._settings:
            return
        self._settings = settings
        networks = [(ipaddress.ip_network(cidr), region) for cidr, region in regions.items()]
        self._regions = sorted(networks, key=lambda entry: -entry[0].prefixlen)
        self._trusted = [ipaddress.ip_network(cidr) for cidr in trusted]
        self._region_of = lru_cache(4096)(self._look_up)

    def trusts(self, address: str | None) -> bool:
        return bool(self._trusted) and address is not None and _within(address, self._trusted)

    def address(self, peer: str | None, headers: Headers) -> str | None:
        """The client's own address: behind a trusted proxy, the last entry of X-Forwarded-For that is not a trusted proxy."""
        if not self.trusts(peer):
            return peer
        client, _ = self._walk(headers)
        return client[0] if client else peer

    def origin(self, request: ReceivedRequest) -> Origin:
        """The request as its client sent it. What a peer that is not trusted claims has no effect."""
        headers, scheme = request.headers, request.scheme
        peer, port = request.client or (None, 0)
        host = next((value for name, value in headers if name == b"host"), b"")
        if not self.trusts(peer):
            return Origin(peer, port, scheme, host, b"")
        client, proxies = self._walk(headers)
        peer, port = client or (peer, port)
        host_claim, prefix = _claim(headers, HOST_HEADER, proxies), _claim(headers, PREFIX_HEADER, proxies).rstrip(b"/")
        return Origin(
            peer,
            port,
            _SCHEMES.get(_claim(headers, PROTO_HEADER, proxies).lower(), scheme),
            host_claim if _HOST.fullmatch(host_claim) else host,
            prefix if _PREFIX.fullmatch(prefix) else b"",
        )

    def region(self, peer: str | None, headers: Headers) -> str | None:
        for name, value in headers:
            if name == REGION_HEADER and 0 < len(value) <= LONGEST_REGION:
                return value.decode("latin-1")
        address = self.address(peer, headers) if self._regions else None
        return self._region_of(address) if address else None

    def _walk(self, headers: Headers) -> tuple[tuple[str, int] | None, int]:
        """(the client's address and port, or None if they are not named; the number of trusted proxies, with the peer)."""
        client, proxies = None, 1
        for text in reversed(_entries(headers, FORWARDED_HEADER)):
            hop = _parse_hop(text) if len(text) <= 64 else None
            if hop is None:
                return None, proxies
            client = hop
            if not _within(hop[0], self._trusted):
                break
            proxies += 1
        return client, proxies

    def _look_up(self, address: str) -> str | None:
        for network, region in self._regions:
            if _within(address, [network]):
                return region
        return None


def forwarded(headers: Headers) -> list[str]:
    """X-Forwarded-For: the entries of all its lines, without empty ones."""
    return [entry.decode("latin-1") for entry in _entries(headers, FORWARDED_HEADER)]


def _entries(headers: Headers, name: bytes) -> list[bytes]:
    listed = [value for key, value in headers if key == name]
    return [entry for value in listed for part in value.split(b",") if (entry := part.strip())]


def _claim(headers: Headers, name: bytes, proxies: int) -> bytes:
    """The entry of the outermost trusted proxy; b"" without one."""
    entries = _entries(headers, name)
    return entries[-min(proxies, len(entries))] if entries else b""


@lru_cache(4096)
def _parse_hop(text: bytes) -> tuple[str, int] | None:
    """(address, port or 0) of `203.0.113.9`, `203.0.113.9:4711`, `2001:db8::9`, `[2001:db8::9]:4711`; one form per address."""
    match = _HOP.fullmatch(text.decode("latin-1").strip('"'))
    if match is None:
        return None
    in_brackets, port_6, dotted, port_4, bare = match.groups()
    try:
        address = _unmapped(ipaddress.ip_address(in_brackets or dotted or bare))
    except ValueError:
        return None
    return str(address), int(port_6 or port_4 or 0)


def _unmapped(address: Address) -> Address:
    """::ffff:10.0.0.1, from a dual-stack socket, is 10.0.0.1."""
    return getattr(address, "ipv4_mapped", None) or address


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        parsed = _unmapped(ipaddress.ip_address(address))
    except ValueError:
        return False
    return any(parsed in network for network in networks)
