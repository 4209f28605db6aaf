"""Which address and region does a request come from? The client's address through trusted proxies, and its region.

Region: the header `x-swiftclaw-region`, else the smallest network in `clientRegions` that contains the address, else none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from deployments.types import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REGION_HEADER = b"x-swiftclaw-region"
FORWARDED_HEADER = b"x-forwarded-for"
LONGEST_REGION = 64


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
        hops = [hop.strip() for value in forwarded(headers) for hop in value.split(",")]
        for hop in reversed(hops):
            if not _is_address(hop):
                return peer
            if not _within(hop, self._trusted):
                return hop
        return hops[0] if hops else peer

    def region(self, peer: str | None, headers: Headers) -> str | None:
        for name, value in headers:
            if name == REGION_HEADER and 0 < len(value) <= LONGEST_REGION:
                return value.decode("latin-1")
        address = self.address(peer, headers) if self._regions else None
        return self._region_of(address) if address else None

    def _look_up(self, address: str) -> str | None:
        for network, region in self._regions:
            if _within(address, [network]):
                return region
        return None


def forwarded(headers: Headers) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == FORWARDED_HEADER]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)  # ::ffff:10.0.0.1 on a dual-stack socket
    return any((mapped or parsed) in network for network in networks)
