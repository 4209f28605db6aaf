"""A port that is taken: found at once, or waited for; and addresses in URLs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from cluster.transport.listener import PortInUse, bind, bind_in_time, in_url


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


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_written_to_a_connection_is_sent_at_once(new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """An answer's body waits for nothing when its head has been sent already."""

    async def accepted() -> int:
        found = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = bind("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return int(await found)

    loop = new_event_loop()
    try:
        assert loop.run_until_complete(accepted())
    finally:
        loop.close()


@pytest.mark.parametrize(("host", "said"), [("10.0.0.1", "10.0.0.1"), ("node.local", "node.local"), ("fd00::1", "[fd00::1]")])
def test_only_ipv6_has_brackets_in_a_url(host: str, said: str) -> None:
    assert in_url(host) == said
