"""The admin port of a cluster without Ray (tests/cluster/stand_in.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from cluster.admin.app import AdminApp
from cluster.transport.listener import Listener, bind
from tests.cluster.stand_in import Port, seven


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with AsyncExitStack() as stack:
        cluster = seven(tmp_path)
        listener = Listener(AdminApp(cluster.view).app(), bind("127.0.0.1", 0), grace_s=0)
        await listener.start()
        stack.push_async_callback(listener.close)
        url = f"http://127.0.0.1:{listener.port}"
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield Port(cluster, url, client)
