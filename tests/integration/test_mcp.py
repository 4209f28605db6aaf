"""The MCP server of docs/mounted-apps.md, live: its official client keeps every session while a gateway is killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import yaml
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from tests.integration.conftest import ROOT, Cluster, until
from tests.integration.load import note

pytestmark = pytest.mark.cluster

CONVERSATIONS = 100
CALLS = 6  # of each; the gateway is killed between the third and the fourth


def example() -> dict[str, str]:
    """The files of the page, by name."""
    page = (ROOT / "docs/mounted-apps.md").read_text()
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", page, re.DOTALL))


@pytest.fixture(scope="module")
def toolbox(shared: Cluster) -> Iterator[Cluster]:
    files = example()
    (shared.folder / "toolbox.py").write_text(files["toolbox.py"])
    args: dict[str, Any] = yaml.safe_load(files["cluster.yaml"])["applications"][0]["args"]
    agent = args["agents"]["toolbox"]
    agent.update(regions={"us-east-1": agent["regions"]["local"]}, resources={"cpus": 0.01})
    shared.write(args["agents"], replicas=args["gateways"][0]["replicas"])
    shared.up()
    yield shared


def test_the_pages_client_prints_what_the_page_says(toolbox: Cluster) -> None:
    script = example()["client.py"].replace("http://127.0.0.1:8000", toolbox.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["['add']", "{'result': 1}", "{'result': 3}", "{'result': 6}"], done.stderr


async def test_100_conversations_are_finished_although_a_gateway_is_killed(toolbox: Cluster) -> None:
    """All of them are open when it is killed; the next calls follow at once, before another gateway has taken its place."""
    ready, go_on = asyncio.Semaphore(0), asyncio.Event()
    starting = asyncio.Semaphore(10)

    async def converse(number: int) -> str:
        # A connection that the killed gateway has not accepted yet is made again.
        transport = httpx.AsyncHTTPTransport(retries=5)
        async with (
            httpx.AsyncClient(transport=transport, timeout=30) as http,
            streamable_http_client(f"{toolbox.url}/agents/toolbox/mcp", http_client=http) as (read, write, session_id),
            ClientSession(read, write) as session,
        ):
            async with starting:
                await session.initialize()
                assert [tool.name for tool in (await session.list_tools()).tools] == ["add"]
            for call in range(1, CALLS + 1):
                if call == CALLS // 2 + 1:
                    ready.release()
                    await go_on.wait()
                result = await session.call_tool("add", {"number": number})
                assert result.structuredContent == {"result": number * call}, result
            return str(session_id())

    conversations = [asyncio.create_task(converse(number)) for number in range(1, CONVERSATIONS + 1)]
    for _ in conversations:
        waiting = asyncio.ensure_future(ready.acquire())
        await asyncio.wait([waiting, *conversations], return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert waiting.done(), [task.exception() for task in conversations if task.done()]
    rows = await asyncio.to_thread(toolbox.instances, "toolbox")
    open_streams = Counter({row["id"]: row["connections"] for row in rows})
    victim = (await asyncio.to_thread(toolbox.gateways))[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not psutil.pid_exists(victim), "the killed gateway has ended")
    go_on.set()
    sessions = await asyncio.wait_for(asyncio.gather(*conversations), 60)
    assert len(set(sessions)) == CONVERSATIONS
    note(f"{CONVERSATIONS} conversations of {CALLS} calls; streams at each instance before the kill: {dict(open_streams)}")
    assert len(open_streams) == 3 and min(open_streams.values()) > 10
