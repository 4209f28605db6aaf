"""Who asks, and from where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.request.client_address import ClientAddresses


def clients(regions: dict[str, str] | None = None, trusted: tuple[str, ...] = ()) -> ClientAddresses:
    made = ClientAddresses()
    made.configure(regions or {}, trusted)
    return made


def xff(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode()) for value in values]


def test_an_untrusted_peer_is_the_client_whatever_it_says() -> None:
    assert clients().address("203.0.113.1", xff("10.0.0.1")) == "203.0.113.1"
    assert clients(trusted=("10.0.0.0/8",)).address("203.0.113.1", xff("10.0.0.1")) == "203.0.113.1"


def test_behind_trusted_proxies_it_is_the_last_address_that_is_none_of_them() -> None:
    known = clients(trusted=("10.0.0.0/8", "fd00::/8"))
    assert known.address("10.0.0.9", xff("198.51.100.7, 203.0.113.1, 10.0.0.8")) == "203.0.113.1"
    assert known.address("fd00::1", xff("203.0.113.1", "10.0.0.8")) == "203.0.113.1"
    assert known.address("10.0.0.9", xff("nonsense")) == "10.0.0.9"
    assert known.address("10.0.0.9", []) == "10.0.0.9"


def test_a_region_is_named_by_header_before_it_is_looked_up() -> None:
    known = clients({"203.0.113.0/24": "eu", "203.0.113.128/25": "ap"})
    assert known.region("203.0.113.1", [(b"x-swiftclaw-region", b"us")]) == "us"
    assert known.region("203.0.113.1", []) == "eu"
    assert known.region("203.0.113.200", []) == "ap", "the smallest network that matches"
    assert known.region("::ffff:203.0.113.200", []) == "ap"
    assert known.region("192.0.2.1", []) is None
    assert known.region(None, []) is None


@given(st.text(max_size=60), st.binary(max_size=60))
def test_no_address_and_no_header_raises(peer: str, value: bytes) -> None:
    known = clients({"203.0.113.0/24": "eu"}, ("10.0.0.0/8",))
    for who in (peer, "10.0.0.1"):
        known.address(who, [(b"x-forwarded-for", value)])
        known.region(who, [(b"x-forwarded-for", value)])
