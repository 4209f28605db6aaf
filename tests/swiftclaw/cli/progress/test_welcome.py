"""When everything has been started, a Controller that is away for a moment does not make `up` fail."""

from __future__ import annotations

import pytest

from swiftclaw.cli.errors import AdminUnreachable
from swiftclaw.cli.output.welcome import patiently


def test_it_is_asked_again_for_a_while() -> None:
    left = [AdminUnreachable("connection refused"), AdminUnreachable("connection refused")]

    def read() -> str:
        if left:
            raise left.pop()
        return "healthy"

    assert patiently(read, 5.0) == "healthy"


def test_one_that_stays_away_is_an_error() -> None:
    def read() -> str:
        raise AdminUnreachable("connection refused")

    with pytest.raises(AdminUnreachable):
        patiently(read, 0.05)
