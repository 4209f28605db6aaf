from __future__ import annotations

from examples import minimal, noop
from swiftclaw.agent import Turn


async def test_minimal_says_what_it_was_told():
    assert await minimal.agent.answer(Turn("hi", None, None)) == "hi"


async def test_noop_says_ok():
    assert await noop.agent.answer(Turn("hi", None, None)) == "ok"
