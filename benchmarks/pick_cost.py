"""Measures the cost of one choice for every strategy, by number of instances: of `pick` alone, and of all that a gateway does.

    python benchmarks/pick_cost.py

Writes pick-cost.md and pick-cost.json to benchmarks/results/, with a description of the machine. Figures are medians of
the thread's CPU time, so that other work on the machine counts less; each pick gets its own list, as from a gateway that has
just filtered its instances, and the loads change between picks. All that a gateway does: `Pool.choose` and the release of its
lease, over three regions, with session affinity (of ten requests, five have no session, four one that has a home, and one a
new one of the client's naming), a canary that gets 10 %, and breakers.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from time import thread_time_ns

from cluster.config import parse
from cluster.instance_state import HEALTHY
from cluster.messages import AgentView, Member, VersionShare
from deployments.balancing.backend import Lease
from deployments.balancing.pool import Pool
from policies import STRATEGIES
from policies.base import Instance, Request
from policies.regions.distance import Distances

SIZES = (2, 10, 64, 256, 1000, 10_000)
SMALL, LARGE = 10, 1000
REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-1")
REPEATS = 15
PICKS = 400  # per repeat
MOST_OPEN = 400  # requests in flight at a time
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    alone = {name: [cost_us(name, size) for size in SIZES] for name in STRATEGIES}
    whole = {name: [whole_cost_us(name, size) for size in SIZES] for name in STRATEGIES}
    machine = {"cpu": cpu_model(), "python": f"{platform.python_implementation()} {platform.python_version()}"}
    document = {"machine": machine, "sizes": SIZES, "median_us": alone, "whole_median_us": whole}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pick-cost.json").write_text(json.dumps(document, indent=1) + "\n")
    page = render(alone, whole, machine)
    (RESULTS / "pick-cost.md").write_text(page)
    print(page)


def cost_us(name: str, size: int) -> float:
    """Median microseconds of a pick among `size` instances with equal weights."""
    rng = Random(size)
    strategy = STRATEGIES[name](rng)
    instances = [
        Instance(id=f"instance-{number}", load=rng.randrange(8), slowness=rng.choice((1.0, 1.0, 1.0, 0.5, 2.0)))
        for number in range(size)
    ]
    lists = [list(instances) for _ in range(PICKS)]
    requests = [Request(agent="agent", session=None, now=number * 0.001) for number in range(PICKS)]
    samples = []
    for _ in range(REPEATS):
        taken = 0
        for fresh, request in zip(lists, requests, strict=True):
            began = thread_time_ns()
            chosen = strategy.pick(fresh, request)
            taken += thread_time_ns() - began
            assert chosen is not None
            chosen.load += 1
            other = rng.choice(instances)
            other.load = max(0, other.load - 1)
        samples.append(taken / PICKS / 1000)
    return median(samples)


def whole_cost_us(name: str, size: int) -> float:
    """Median microseconds of a choice and its release at a pool of `size` instances, 2 of 10 of them of the canary."""
    rng, pool = Random(size), pool_of(name, size)
    now, sessions = 1000.0, [f"session-{number}" for number in range(64)]
    for session in sessions:
        pool.choose(request(now, session), (), now).release(200, now)
    open_leases: list[Lease] = []
    samples = []
    for _ in range(REPEATS):
        taken = 0
        for number in range(PICKS):
            now += 0.001
            session = f"new-{size}-{now}" if number % 10 == 1 else rng.choice(sessions) if number % 2 else None
            asked = request(now, session)
            began = thread_time_ns()
            asked = replace(asked, version=pool.version_for(asked.session, None))
            lease = pool.choose(asked, (), now)
            taken += thread_time_ns() - began
            open_leases.append(lease)
            if len(open_leases) > min(2 * size, MOST_OPEN):
                ended = open_leases.pop(rng.randrange(len(open_leases)))
                began = thread_time_ns()
                ended.release(200, now)
                taken += thread_time_ns() - began
        samples.append(taken / PICKS / 1000)
    return median(samples)


def pool_of(strategy: str, size: int) -> Pool:
    block = {
        "agent": "m:x",
        "regions": {region: {"instances": 1, "priority": 1} for region in REGIONS},
        "loadBalancing": {"strategy": strategy, "sessionAffinity": {"enabled": True}},
        "circuitBreaker": {"failureThreshold": 5},
        "limits": {"maxConnections": 1_000_000},
    }
    settings = parse({"agents": {"agent": block}}, Path("/")).agents["agent"]
    members = tuple(
        Member(f"instance-{n + 1}", f"r{n}", "127.0.0.1", 1, "v2" if n % 5 == 4 else "v1", REGIONS[n % 3], 1, HEALTHY)
        for n in range(size)
    )
    share = VersionShare("v1", "v2" if size >= 5 else None, 10.0)
    return Pool("agent", AgentView(settings, True, members, versions=share), Random(1), Distances(), (b"1" * 32,), 1000.0)


def request(now: float, session: str | None) -> Request:
    return Request(agent="agent", session=session, region="eu-west-1", now=now)


def render(alone: dict[str, list[float]], whole: dict[str, list[float]], machine: dict[str, str]) -> str:
    return "\n".join(
        [
            "# What a choice costs",
            "",
            f"{machine['cpu']}, {machine['python']}; microseconds of CPU time, median of {REPEATS} repeats of {PICKS} choices, "
            f"the readings of the clock included. Growth: cost at {LARGE:,} instances over the cost at {SMALL}. Made by "
            "`python benchmarks/pick_cost.py`.",
            "",
            "All that a gateway does, session affinity, canary and breakers on, with the release:",
            "",
            *table(whole),
            "",
            "`Strategy.pick` alone, of a list of all instances (above 64 instances a gateway makes none):",
            "",
            *table(alone),
            "",
        ]
    )


def table(costs: dict[str, list[float]]) -> list[str]:
    lines = [
        "| strategy | " + " | ".join(f"N = {size:,}" for size in SIZES) + " | growth |",
        "| --- |" + " ---: |" * (len(SIZES) + 1),
    ]
    for name, values in costs.items():
        growth = values[SIZES.index(LARGE)] / values[SIZES.index(SMALL)]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {growth:.1f}-fold |")
    return lines


def cpu_model() -> str:
    """As the kernel names it; `platform` says only "x86_64" on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.machine()


if __name__ == "__main__":
    main()
