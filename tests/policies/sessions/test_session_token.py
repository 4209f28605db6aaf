"""Tokens: whole, of this agent and in time, or nothing."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.sessions import session_token
from policies.sessions.session_token import MAC_BYTES, Token, Tokens

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
NOW = 1_800_000_000.0
TOKENS = Tokens([NEW], ttl_s=3600)
names = st.text(max_size=40)


def issued(tokens: Tokens = TOKENS, agent: str = "agent", now: float = NOW) -> str:
    return tokens.issue(agent, "session-1", "instance-7", "v2", now)


@given(names, names, names, names)
def test_what_was_issued_is_read_back(agent: str, session: str, instance: str, version: str) -> None:
    token = TOKENS.issue(agent, session, instance, version, NOW)
    assert TOKENS.read(token, agent, NOW) == Token(session, instance, version, int(NOW) + 3600)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=500)
def test_made_up_text_reads_as_nothing(text: str) -> None:
    assert TOKENS.read(text, "agent", NOW) is None


@given(st.data())
@settings(max_examples=500)
def test_a_changed_character_anywhere_makes_it_nothing(data: st.DataObject) -> None:
    token = issued()
    at = data.draw(st.integers(0, len(token) - 1))
    forged = token[:at] + data.draw(st.characters()) + token[at + 1 :]
    assert forged == token or TOKENS.read(forged, "agent", NOW) is None


def test_cut_off_anywhere_or_longer_it_is_nothing() -> None:
    token = issued()
    for end in range(len(token)):
        assert TOKENS.read(token[:end], "agent", NOW) is None
        assert TOKENS.read(token[end + 1 :], "agent", NOW) is None
    for tail in ("A", "=", "==", " ", "\n", "AAAA", token, "é", "A" * 100_000):
        assert TOKENS.read(token + tail, "agent", NOW) is None


@pytest.mark.parametrize("nothing", [None, "", "=", "====", "\x00", "a", "A" * 2048])
def test_nothing_is_nothing(nothing: str | None) -> None:
    assert TOKENS.read(nothing, "agent", NOW) is None


def test_another_agent_or_key_makes_it_nothing() -> None:
    assert TOKENS.read(issued(), "agent2", NOW) is None
    assert TOKENS.read(issued(Tokens([OTHER])), "agent", NOW) is None


def test_its_time_is_idle_time() -> None:
    token = issued()
    assert TOKENS.read(token, "agent", NOW + 3599) is not None
    assert TOKENS.read(token, "agent", NOW + 3600) is None
    renewed = issued(now=NOW + 3599)
    assert TOKENS.read(renewed, "agent", NOW + 7000) is not None


def test_it_is_due_after_a_tenth_of_its_time() -> None:
    token = TOKENS.read(issued(), "agent", NOW)
    assert token is not None
    assert [TOKENS.due(token, NOW + passed) for passed in (0, 359, 361, 3000)] == [False, False, True, True]


def test_a_key_is_rotated_by_putting_a_new_one_in_front() -> None:
    before, during, after = Tokens([OLD]), Tokens([NEW, OLD]), Tokens([NEW])
    token = issued(before)
    assert during.read(token, "agent", NOW) is not None
    assert after.read(token, "agent", NOW) is None
    assert before.read(issued(during), "agent", NOW) is None
    assert after.read(issued(during), "agent", NOW) is not None


def test_it_needs_no_quotes_in_a_cookie() -> None:
    token = TOKENS.issue("agent", 'sess;ion=1, "é"', "instance-7", "v2", NOW)
    assert token.isascii()
    assert all(character.isalnum() or character in "-_" for character in token)


@pytest.mark.parametrize(("true", "forged"), [(b"session-1", b"session-2"), (b"instance-7", b"instance-1"), (b"v2", b"v1")])
def test_what_it_says_can_be_read_but_not_changed(true: bytes, forged: bytes) -> None:
    token = issued()
    signed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert signed.count(true) == 1
    changed = urlsafe_b64encode(signed.replace(true, forged)).rstrip(b"=").decode()
    assert TOKENS.read(changed, "agent", NOW) is None


def test_it_cannot_be_given_a_longer_life() -> None:
    token = issued()
    signed = bytearray(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    signed[MAC_BYTES + 3] += 1  # of the 8 bytes of the expiry: a century
    assert TOKENS.read(urlsafe_b64encode(signed).rstrip(b"=").decode(), "agent", NOW) is None


@pytest.mark.parametrize("keys", [[], [b"short"], [NEW, b""]])
def test_keys_must_be_keys(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="at least one key"):
        Tokens(keys)


def test_names_that_do_not_fit_into_a_cookie_are_refused() -> None:
    with pytest.raises(ValueError, match="may have"):
        TOKENS.issue("agent", "s" * 2000, "i", "v", NOW)
    with pytest.raises(ValueError, match="may have"):
        TOKENS.issue("agent", "s" * 70_000, "i", "v", NOW)


def test_keys_are_not_shown() -> None:
    assert repr(Tokens([OLD, NEW])) == "<Tokens: 2 keys, ttl 3600 s>"


@pytest.mark.parametrize(
    "body", [bytes(8), bytes(8) + b"\0\1a", bytes(8) + b"\0\1a\0\1b\0\1c\0\1d", bytes(8) + b"\0\1\xff" * 3], ids=repr
)
def test_what_this_key_signed_for_another_purpose_reads_as_nothing(body: bytes) -> None:
    signed = session_token._mac(NEW, "agent", body) + body
    assert TOKENS.read(session_token._encoded(signed), "agent", NOW) is None


def test_a_session_in_use_keeps_its_token_when_the_clock_was_set_forward() -> None:
    token, later = issued(), NOW + 7200
    assert TOKENS.read(token, "agent", later) is None
    held = TOKENS.read(token, "agent", later, lambda session: session == "session-1")
    assert held is not None and TOKENS.due(held, later), "and is given a new one"
    assert TOKENS.read(token, "agent2", later, lambda session: True) is None, "it is good for its own agent alone all the same"


def test_a_token_from_a_time_to_come_is_due_as_the_clock_was_set_back() -> None:
    """Its cookie ends at the client after the ttl, whatever the gateway's clock says."""
    token = TOKENS.read(issued(), "agent", NOW)
    assert token is not None
    assert [TOKENS.due(token, NOW - back) for back in (5, 300, 3600)] == [False, False, True]
