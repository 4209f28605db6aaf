"""Who asks, and from where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.request.client_address import ClientAddresses, Origin
from deployments.request.record import RequestRecord


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


@pytest.mark.parametrize("suffix", ["", ":4711"])
@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:DB8:0::9]", "2001:db8::9"),
        ("[::ffff:203.0.113.9]", "203.0.113.9"),
    ],
)
def test_a_hop_may_have_a_port_and_brackets(written: str, address: str, suffix: str) -> None:
    known = clients({"203.0.113.0/24": "eu", "2001:db8::/32": "ap"}, trusted=("10.0.0.0/8",))
    for value in (written + suffix, f'"{written}{suffix}"', f"198.51.100.1, {written}{suffix}, ,10.0.0.8:80,"):
        assert known.address("10.0.0.9", xff(value)) == address
        assert known.region("10.0.0.9", xff(value)) == ("eu" if "." in address else "ap")
    port = int(suffix[1:] or 0)
    assert known.origin(received(xff(written + suffix)))[:2] == (address, port)


@pytest.mark.parametrize("value", ["unknown", "_hidden", "203.0.113", "[203.0.113.9", "::1::", "203.0.113.9:port", "1" * 5000])
def test_a_hop_that_is_no_address_leaves_the_proxy_as_the_client(value: str) -> None:
    assert clients(trusted=("10.0.0.0/8",)).address("10.0.0.9", xff(value)) == "10.0.0.9"


def received(headers: list[tuple[bytes, bytes]], peer: str = "10.0.0.9", scheme: str = "http") -> RequestRecord:
    return RequestRecord("GET", b"/", b"", headers, client=(peer, 1), scheme=scheme)


def origin(known: ClientAddresses, *headers: tuple[str, str], peer: str = "10.0.0.9", scheme: str = "http") -> Origin:
    sent = [(b"host", b"own"), *((name.encode(), value.encode()) for name, value in headers)]
    return known.origin(received(sent, peer, scheme))


class TestOrigin:
    """What the client asked, before the proxies."""

    known = clients(trusted=("10.0.0.0/8",))

    def test_a_stranger_claims_nothing(self) -> None:
        claims = [(f"x-forwarded-{name}", "https") for name in ("for", "proto", "host", "prefix")]
        assert origin(self.known, *claims, peer="203.0.113.1") == ("203.0.113.1", 1, "http", b"own", b"")
        assert origin(self.known, peer="203.0.113.1", scheme="https").scheme == "https"

    def test_a_trusted_proxy_is_believed(self) -> None:
        claims = (
            ("x-forwarded-for", "203.0.113.1"),
            ("x-forwarded-proto", "HTTPS"),
            ("x-forwarded-host", "a.example:8443"),
            ("x-forwarded-prefix", "/api/"),
        )
        assert origin(self.known, *claims) == ("203.0.113.1", 0, "https", b"a.example:8443", b"/api")

    def test_with_several_entries_the_outermost_trusted_proxy_is_believed(self) -> None:
        listed = (("x-forwarded-proto", "gopher"), ("x-forwarded-proto", "https, http"))
        assert origin(self.known, ("x-forwarded-for", "203.0.113.1, 10.0.0.8"), *listed).scheme == "https"
        assert origin(self.known, ("x-forwarded-for", "203.0.113.1"), *listed).scheme == "http"

    @pytest.mark.parametrize("host", ["", "a b", "a.example/x", "user@a.example", "a.example:port", "[::1", "a\\b"])
    def test_a_host_that_is_none_has_no_effect(self, host: str) -> None:
        assert origin(self.known, ("x-forwarded-host", host)).host == b"own"

    @pytest.mark.parametrize("prefix", ["", "/", "//evil.example", "https://evil.example", "/a//b", "/a\\b", "/a?b", "/a b"])
    def test_a_prefix_that_is_no_path_has_no_effect(self, prefix: str) -> None:
        assert origin(self.known, ("x-forwarded-prefix", prefix)).prefix == b""
