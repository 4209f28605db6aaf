"""Measures what a gateway's metrics cost per request.

    python benchmarks/metrics_cost.py            # 60 rounds, 2 minutes
    python benchmarks/metrics_cost.py --quick    # 2 rounds; shows that it runs, and writes nothing

One process with a gateway, one with two no-op instances, without Ray, on loopback, under constant load from `wrk`. Each round
is a second in which the gateway counts (tally, counts file, observations to a process that aggregates them like the Controller)
and a second in which it does not. The main figure is the kernel's CPU time of the gateway process per request, compared between
the two seconds, because other work on the machine changes it less than throughput. Writes metrics-cost.md and
metrics-cost.json to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import uvloop
from comparison import machine
from comparison.load import Load
from comparison.wrk import NoWrk, find_wrk

from cluster.config import parse
from cluster.controller_api import ControlApi
from cluster.messages import AgentView, InstanceSpec, Member, Observation, RegistrationReply, Snapshot
from cluster.telemetry.tally import Tally
from cluster.telemetry.totals import MetricTotals
from cluster.transport.listener import Listener, bind
from cluster.transport.rpc import RpcAddress, RpcClient, RpcServer
from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import Lease
from deployments.gateway.counts_file import CountsFile
from deployments.gateway.edge import Edge
from deployments.gateway.reporter import Reporter
from deployments.instance.server import InstanceServer
from deployments.proxy.client import Arrived, ClientSide, RequestSide
from deployments.proxy.client_connection import ClientConnection
from deployments.upstream.connection_pool import ConnectionPool
from swiftclaw import Agent

RESULTS = Path(__file__).parent / "results"
KEY = "a-key"
CONNECTIONS = 32
SLICE_S = 1.0
LIMIT_PERCENT = 5.0
COUNTING = {Tally: ("routed", "add", "count"), Lease: ("count",)}  # what the path of a request calls


class Adder:
    """The Controller's part."""

    def __init__(self) -> None:
        self.ledger = MetricTotals()

    async def observe(self, seen: Observation) -> None:
        self.ledger.add(seen, time.monotonic())


async def instances() -> None:
    """A process: two instances and an adder; says where they listen."""
    agent = Agent("noop")

    @agent.on_message
    async def answer() -> str:
        return "ok"

    ports = []
    for number in (1, 2):
        spec = InstanceSpec("noop", "m:agent", "/", "v1", "local", "noop.v1.local")
        host = InstanceServer(agent, spec, RegistrationReply(f"instance-{number}", KEY), replica=f"r{number}")
        listener = Listener(host, bind("127.0.0.1", 0), grace_s=0)
        await listener.start()
        ports.append(listener.port)
    adder = RpcServer({"observe": Adder().observe}, KEY)
    await adder.open("127.0.0.1")
    print(json.dumps([*ports, adder.address.port]), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def gateway(first: int, second: int, adder: int) -> None:
    """A process: one gateway. A line begins the measuring, another ends it and is answered with the runs."""

    async def find() -> RpcAddress:
        return RpcAddress("127.0.0.1", adder, KEY)

    with tempfile.TemporaryDirectory() as folder:
        agents = AgentTable(Random(1), "g1")
        reporter = Reporter(agents, CountsFile(Path(folder), "g1"))
        reporter.track(agents.apply(_snapshot(first, second)))
        connections, link = ConnectionPool(), RpcClient(find)
        routes = Edge(agents, reporter, connections, "local")
        edge = Counted(routes)
        protocol = partial(ClientConnection, edge.receive)
        listener = Listener(routes, bind("127.0.0.1", 0), date=True, grace_s=0, protocol=protocol)
        await listener.start()
        print(json.dumps(listener.port), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # when the load begins
        runs: list[dict[str, Any]] = []
        slicing = asyncio.create_task(_slices(runs, edge, reporter, link))
        await asyncio.to_thread(sys.stdin.readline)  # before it ends
        slicing.cancel()
        await asyncio.gather(slicing, return_exceptions=True)
        print(json.dumps(runs), flush=True)
        await asyncio.to_thread(sys.stdin.read)  # what is still asked is answered
        await link.close()
        await connections.close()


class Counted:
    """The edge, and how many requests it has received, whatever else counts them."""

    def __init__(self, edge: Edge) -> None:
        self._edge, self.requests = edge, 0

    def receive(self, arrived: Arrived, client: ClientSide) -> RequestSide:
        self.requests += 1
        return self._edge.receive(arrived, client)


async def _slices(runs: list[dict[str, Any]], edge: Counted, reporter: Reporter, link: RpcClient) -> None:
    """A second with metrics and one without, in turns; which is first changes from round to round."""
    kept = {(owner, name): getattr(owner, name) for owner, names in COUNTING.items() for name in names}
    for number in itertools.count(1):
        for metrics in ("on", "off") if number % 2 else ("off", "on"):
            for (owner, name), method in kept.items():
                setattr(owner, name, method if metrics == "on" else _nothing)
            requests, used, began = edge.requests, _cpu_s(), time.monotonic()
            await asyncio.sleep(SLICE_S)
            if metrics == "on":
                await link.call(ControlApi.observe, reporter.observation())
                reporter.delivered()
            requests, used, seconds = edge.requests - requests, _cpu_s() - used, time.monotonic() - began
            runs.append({
                "metrics": metrics, "round": number, "requests": requests, "seconds": round(seconds, 3),
                "per_second": round(requests / seconds, 1), "cpu_us": round(1e6 * used / max(1, requests), 2),
            })  # fmt: skip


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _nothing(*_: object) -> None:
    """Instead of counting."""


def _snapshot(*ports: int) -> Snapshot:
    settings = parse({"agents": {"noop": {"agent": "m:agent"}}}, Path("/"))
    members = tuple(
        Member(f"instance-{number}", f"r{number}", "127.0.0.1", port, "v1", "local", 1, "healthy")
        for number, port in enumerate(ports, 1)
    )
    return Snapshot("1", KEY, settings.http, {"noop": AgentView(settings.agents["noop"], False, members)}, ("11" * 32,))


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--be", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def said(process: subprocess.Popen[str], command: str = "") -> Any:
    assert process.stdin is not None and process.stdout is not None
    if command:
        tell(process, command)
    return json.loads(process.stdout.readline())


def tell(process: subprocess.Popen[str], command: str) -> None:
    assert process.stdin is not None
    process.stdin.write(command + "\n")
    process.stdin.flush()


def measure(load: Load, rounds: int) -> tuple[list[dict[str, Any]], int]:
    """Every whole round, and how many requests failed."""
    seconds = round(2.2 * SLICE_S * rounds) + 2  # a slice takes a little longer than it should
    with process("instances") as behind, process("gateway", *map(str, said(behind))) as edge:
        url = f"http://127.0.0.1:{said(edge)}/agents/noop/messages"
        load.measure("warm-up", url, connections=CONNECTIONS, round=0, warm_up_s=0, seconds=3)
        ending = threading.Timer(seconds, tell, (edge, "end"))
        tell(edge, "begin")
        ending.start()
        run = load.measure("gateway", url, connections=CONNECTIONS, round=1, warm_up_s=0, seconds=seconds + 1)
        runs = said(edge)
    whole = len(runs) // 2 * 2
    return runs[:whole], run.refused + run.broken


def summary(runs: list[dict[str, Any]], failed: int = 0) -> dict[str, Any]:
    """Medians, and the median over the rounds of what metrics add, each round against itself."""
    of = {which: [run for run in runs if run["metrics"] == which] for which in ("on", "off")}
    by_round = {which: {run["round"]: run for run in some} for which, some in of.items()}
    ratios = sorted(by_round["on"][n]["cpu_us"] / by_round["off"][n]["cpu_us"] for n in by_round["on"])
    return {
        **{which: {what: median(run[what] for run in some) for what in ("cpu_us", "per_second")} for which, some in of.items()},
        "added_percent": round(100 * (median(ratios) - 1), 2),
        "added_percent_95": [round(100 * (ratio - 1), 2) for ratio in _interval(ratios)],
        "throughput_percent": round(
            100 * (1 - median(r["per_second"] for r in of["on"]) / median(r["per_second"] for r in of["off"])), 2
        ),
        "rounds": len(ratios),
        "failed": failed,
    }


def _interval(ordered: list[float]) -> tuple[float, float]:
    """Where the median lies with 95 %, by the ranks beside it: whatever the noise is distributed like."""
    reach = 0.98 * len(ordered) ** 0.5
    middle = (len(ordered) - 1) / 2
    return ordered[max(0, math.floor(middle - reach))], ordered[min(len(ordered) - 1, math.ceil(middle + reach))]


def calls_us() -> float:
    """The calls of one request by themselves, in CPU time; the least of some repeats."""
    with tempfile.TemporaryDirectory() as folder:
        spool, tally = CountsFile(Path(folder), "g1"), Tally()
        spool.attach(("noop", "v1", "local", "instance-1"), tally)
        return min(timeit.repeat(lambda: _count(tally), timer=time.process_time, repeat=9, number=20_000)) / 20_000 * 1e6


def _count(tally: Tally) -> None:
    tally.routed(0.00003)
    tally.add(200, 0.012, 0.011)


def render(made: str, described: dict[str, Any], found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    low, high = found["added_percent_95"]
    verdict = "holds" if high <= LIMIT_PERCENT else "is missed" if low > LIMIT_PERCENT else "may hold or not: too much noise"
    rows = [
        f"| {name} | {found[key]['cpu_us']:.1f} | {found[key]['per_second']:,.0f} |"
        for key, name in (("off", "without metrics"), ("on", "with metrics"))
    ]
    return "\n".join([
        "# What a gateway's metrics cost", "",
        f"{made}; {described['cpu']}, {described['cores']} cores, {described['memory_gb']} GB, {described['system']}, "
        f"load {described['load_before']} before it began; {versions}.",
        f"{found['rounds']} rounds of {SLICE_S:g} s each way, interleaved, {CONNECTIONS} connections, on loopback without Ray; "
        "medians. Made by `python benchmarks/metrics_cost.py`; every run is in `metrics-cost.json`.", "",
        "| | CPU of the gateway per request, µs | req/s |", "| --- | ---: | ---: |", *rows, "",
        f"Metrics add {found['added_percent']:.1f} % CPU time per request (median of the rounds, each against itself; 95 % "
        f"interval {low:.1f} to {high:.1f} %). The limit of {LIMIT_PERCENT:g} % {verdict}. "
        f"The calls of one request take {found['calls_us']:.1f} µs by themselves.", "",
        f"By throughput, which other work on the machine changes, it is {found['throughput_percent']:.1f} %. "
        f"Requests that failed: {found['failed']}.", "",
        "With: each request is counted where a kill does not lose it, with its times, and once a second all of it is sent to "
        "a process that adds it up. Without: the same calls are made and do nothing.", "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds; writes nothing")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--be", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        uvloop.install()
        asyncio.run(instances() if options.be[0] == "instances" else gateway(*map(int, options.be[1:])))
        return 0
    try:
        wrk = find_wrk()
    except NoWrk as error:
        print(f"metrics_cost: {error}", file=sys.stderr)
        return 1
    described = machine.describe("true", wrk)
    del described["versions"]["haproxy"]
    runs, failed = measure(Load(wrk), 2 if options.quick else options.rounds)
    found = {**summary(runs, failed), "calls_us": round(calls_us(), 2)}
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = render(made, described, found)
    if not options.quick:
        document = {"made": made, "machine": described, "summary": found, "runs": runs}
        (RESULTS / "metrics-cost.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / "metrics-cost.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
