"""Measures what remembered sessions cost: the memory of a gateway, and the bytes that gateways exchange.

    python benchmarks/sessions.py                     # 100,000 sessions, about a minute
    python benchmarks/sessions.py --sessions 1000     # shows that it runs, and writes nothing

Gateways without their public ports, without Ray, each in a process of its own, on loopback: the first places every session, the
second receives each home as it is placed, and a third starts afterwards and receives all of them at once. Session names are
UUIDs (36 characters). Bytes are those of the messages' bodies. Writes sessions.md and sessions.json to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import multiprocessing
import platform
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import psutil
from pick_cost import cpu_model

from cluster.config import parse
from cluster.messages import AgentView, Member, Peer, Snapshot
from deployments.balancing.agents import AgentTable
from deployments.gateway.admission import RateLimits
from deployments.gateway.peers import Peers
from deployments.upstream.connection_pool import ConnectionPool
from policies.base import Request

RESULTS = Path(__file__).parent / "results"
SESSIONS = 100_000
INSTANCES = 7
PER_BURST = 100  # sessions that begin in the same moment, between two messages to a peer


class CountingPool(ConnectionPool):
    """Counts the bodies of what it sends."""

    sent_bytes = 0
    messages = 0

    async def request(self, *arguments: Any, **named: Any) -> Any:
        self.sent_bytes += len(arguments[5])
        self.messages += 1
        return await super().request(*arguments, **named)


class Site:
    """One gateway, as far as sessions are concerned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.agents = AgentTable(Random(1), name)
        self.connections = CountingPool()
        self.peers = Peers(name, self.agents, RateLimits(self.agents), self.connections)

    def apply(self, peers: list[tuple[str, int]]) -> None:
        block = {"agent": "m:x", "loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}
        settings = parse({"agents": {"bot": block}}, Path("/"))
        members = tuple(
            Member(f"instance-{n}", f"swiftclaw#bot.v1.local#{n:08x}", "10.0.0.1", n, "v1", "local", 1, "healthy")
            for n in range(INSTANCES)
        )
        view = AgentView(settings.agents["bot"], True, members)
        links = tuple(Peer(name, "127.0.0.1", port) for name, port in peers)
        self.agents.apply(Snapshot("1", "key", settings.http, {"bot": view}, ("11" * 32,), peers=links))
        self.peers.tick(time.monotonic())

    @property
    def known(self) -> int:
        pool = self.agents.pools.get("bot")
        return len(pool.sessions.homes) if pool is not None and pool.sessions is not None else 0

    def place(self, numbers: range) -> None:
        pool = self.agents.pools["bot"]
        for number in numbers:
            now = time.monotonic()
            name = str(uuid.UUID(int=Random(number).getrandbits(128)))
            pool.choose(Request("bot", name, now=now), (), now).release(200, now)


async def first(pipe: Connection, count: int) -> dict[str, Any]:
    """Places all sessions: alone for the memory, then the same number anew beside one peer, then beside one that starts."""
    site = Site("first")
    port = await site.peers.open("127.0.0.1")
    site.apply([])
    before = memory()
    site.place(range(count))
    site.peers.sessions.collect(time.monotonic())
    per_session = (memory() - before) / count
    pipe.send(port)
    second: tuple[str, int] = await received(pipe)
    site.agents.pools["bot"].sessions = None  # forgotten, to be placed beside the peer
    site.apply([second])
    await asyncio.sleep(0.5)
    site.connections.sent_bytes = site.connections.messages = 0
    began = time.process_time()
    for start in range(0, count, PER_BURST):
        site.place(range(start, min(count, start + PER_BURST)))
        site.peers.announce()
        await asyncio.sleep(0)
        await site.peers.settled()
    cpu_us = (time.process_time() - began) / count * 1e6
    steady = (site.connections.sent_bytes / count, site.connections.messages)
    pipe.send("placed")
    third: tuple[str, int] = await received(pipe)
    site.connections.sent_bytes = site.connections.messages = 0
    site.apply([second, third])
    await received(pipe)
    start_bytes, start_messages = site.connections.sent_bytes, site.connections.messages
    await site.peers.close()
    return {
        "gateway_bytes_per_session": round(per_session),
        "exchange_bytes_per_session": round(steady[0]),
        "exchange_messages": steady[1],
        "placing_cpu_us_per_session": round(cpu_us, 1),
        "start_bytes": start_bytes,
        "start_messages": start_messages,
    }


async def follower(pipe: Connection, name: str, first_port: int, count: int) -> dict[str, Any]:
    """Receives every home. `seconds`: from the link being made until all are known."""
    site = Site(name)
    port = await site.peers.open("127.0.0.1")
    site.apply([("first", first_port)])
    before, began, cpu = memory(), time.monotonic(), time.process_time()
    pipe.send((name, port))
    while site.known < count:
        await asyncio.sleep(0.01)
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu
    await site.peers.close()
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "gateway_bytes_per_session": round((memory() - before) / count),
    }


def memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


async def received(pipe: Connection) -> Any:
    while not pipe.poll():
        await asyncio.sleep(0.01)
    return pipe.recv()


def process(run: Callable[..., Any], pipe: Connection, *arguments: Any) -> None:
    logging.disable()
    pipe.send(asyncio.run(run(pipe, *arguments)))


def measure(count: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")

    def start(run: Callable[..., Any], *arguments: Any) -> Any:
        here, there = context.Pipe()
        context.Process(target=process, args=(run, there, *arguments), daemon=True).start()
        return here

    one = start(first, count)
    port = one.recv()
    two = start(follower, "second", port, count)
    one.send(two.recv())
    one.recv()
    three = start(follower, "third", port, count)
    one.send(three.recv())
    started, merged = three.recv(), two.recv()
    one.send("done")
    return {
        **one.recv(),
        "start_seconds": started["seconds"],
        "start_cpu_seconds": started["cpu_s"],
        "merged_bytes_per_session": merged["gateway_bytes_per_session"],
    }


def render(document: dict[str, Any]) -> str:
    count, found, machine = document["sessions"], document["figures"], document["machine"]
    mib = 2**20

    def row(what: str, per_session: float) -> str:
        return f"| {what} | {per_session:,.0f} bytes | {per_session * count / mib:,.1f} MiB |"

    return "\n".join(
        [
            "# What remembered sessions cost",
            "",
            f"{document['made']}; {machine['cpu']}, Python {machine['python']}, load {machine['load_before']} before it began.",
            f"{count:,} sessions of one agent with {INSTANCES} instances, names of 36 characters. "
            "Made by `python benchmarks/sessions.py`.",
            "",
            "| | per session | in all |",
            "| --- | ---: | ---: |",
            row("memory of the gateway that placed them", found["gateway_bytes_per_session"]),
            row("memory of a gateway that received them", found["merged_bytes_per_session"]),
            row("sent to each other gateway as they begin", found["exchange_bytes_per_session"]),
            row("sent to a gateway that starts", found["start_bytes"] / count),
            "",
            f"As they begin, {PER_BURST} at a time: {found['exchange_messages']:,} messages and "
            f"{found['placing_cpu_us_per_session']:g} µs of CPU per session, the choice of the instance included. "
            f"A gateway that starts has all of them in {found['start_seconds']:g} s "
            f"({found['start_cpu_seconds']:g} s of its CPU time) and {found['start_messages']} messages.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help=f"how many (default {SESSIONS:,})")
    count = parser.parse_args().sessions
    machine = {
        "cpu": cpu_model(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_before": round(psutil.getloadavg()[0], 1),
    }
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    document = {"made": made, "machine": machine, "sessions": count, "instances": INSTANCES, "figures": measure(count)}
    page = render(document)
    if count == SESSIONS:
        (RESULTS / "sessions.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / "sessions.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
