"""Tokens of versions up to 0.1: still read, never issued. Goes with policies/sessions/legacy_token.py."""

from __future__ import annotations

import pytest

from policies.sessions.session_token import Token, Tokens

KEY, NEW = b"o" * 32, b"n" * 32
NOW = 1_800_000_000.0
# What version 0.1 issued with KEY at NOW for `agent`, with a ttl of an hour.
SHORT = "yf1VNyZkpX68HE5Dh9VLbZpYkkuLD4n_BXQHxG9yOKXZgsyuTcASTXpHETKhdK8Ju1ei"
LONG = "CFxSpSg8tsbMBkbrmzyMDCCjfDOO8CM3aksJUoZAYOUGrfiAu4YZjA0jmw2QqHe3ZRJpmedXqw14D78QNkptEavN1jj_IKhSmA-zZGfnPEf7WVy-"
TOKENS = Tokens([KEY], ttl_s=3600)


def test_one_that_an_older_version_issued_is_read() -> None:
    expires = int(NOW) + 3600
    assert TOKENS.read(SHORT, "agent", NOW) == Token("session-1", "instance-7", "v2", expires)
    assert TOKENS.read(LONG, "agent", NOW) == Token("s" * 40 + "é", "instance-7", "v2", expires)


def test_it_is_due_like_any_other_and_replaced_by_one_of_the_new_form() -> None:
    token = TOKENS.read(SHORT, "agent", NOW + 400)
    assert token is not None
    assert TOKENS.due(token, NOW + 400)
    renewed = TOKENS.issue("agent", token.session, token.instance, token.version, NOW + 400)
    assert len(renewed) == len(SHORT)
    assert renewed != SHORT


def test_its_key_may_have_been_rotated_since() -> None:
    assert Tokens([NEW, KEY]).read(SHORT, "agent", NOW) is not None


def test_expired_foreign_or_without_its_key_it_is_nothing() -> None:
    assert TOKENS.read(SHORT, "agent", NOW + 3600) is None
    assert TOKENS.read(SHORT, "agent2", NOW) is None
    assert Tokens([NEW]).read(SHORT, "agent", NOW) is None


@pytest.mark.parametrize("token", [SHORT, LONG], ids=["short", "long"])
def test_changed_or_cut_off_anywhere_it_is_nothing(token: str) -> None:
    for at, character in enumerate(token):
        other = "A" if character != "A" else "B"
        assert TOKENS.read(token[:at] + other + token[at + 1 :], "agent", NOW) is None
        assert TOKENS.read(token[:at], "agent", NOW) is None
