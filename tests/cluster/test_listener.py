"""A port that is taken: found at once, or waited for; and addresses in URLs."""

from __future__ import annotations

import asyncio

import pytest

from cluster.listener import PortInUse, bind, bind_in_time, in_url


async def test_a_port_that_becomes_free_in_time_is_bound() -> None:
    before = bind("127.0.0.1", 0)
    port = before.getsockname()[1]
    waiting = asyncio.create_task(bind_in_time("127.0.0.1", port, within_s=30))
    await asyncio.sleep(0)  # it has tried once
    assert not waiting.done()
    before.close()
    with await waiting as bound:
        assert bound.getsockname()[1] == port


async def test_a_port_that_stays_taken_is_given_up_with_its_name() -> None:
    with bind("127.0.0.1", 0) as before:
        port = before.getsockname()[1]
        with pytest.raises(PortInUse, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await bind_in_time("127.0.0.1", port, within_s=0)


@pytest.mark.parametrize(("host", "said"), [("10.0.0.1", "10.0.0.1"), ("node.local", "node.local"), ("fd00::1", "[fd00::1]")])
def test_only_ipv6_has_brackets_in_a_url(host: str, said: str) -> None:
    assert in_url(host) == said
