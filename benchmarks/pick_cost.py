"""Measures the cost of one `pick` for every strategy, by number of instances.

    python benchmarks/pick_cost.py

Writes pick-cost.md and pick-cost.json to benchmarks/results/, with a description of the machine. Figures are medians of
the thread's CPU time, so that other work on the machine counts less; each pick gets its own list, as from a gateway that has
just filtered its instances, and the loads change between picks.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from random import Random
from statistics import median
from time import thread_time_ns

from policies import STRATEGIES
from policies.base import Instance, Request

SIZES = (2, 8, 64, 256, 1000)
REPEATS = 15
PICKS = 400  # per repeat
LIMITS_US = {8: 10.0, 1000: 150.0}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    costs = {name: [cost_us(name, size) for size in SIZES] for name in STRATEGIES}
    machine = {"cpu": cpu_model(), "python": f"{platform.python_implementation()} {platform.python_version()}"}
    document = {"machine": machine, "sizes": SIZES, "median_us": costs, "limits_us": LIMITS_US}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pick-cost.json").write_text(json.dumps(document, indent=1) + "\n")
    page = render(costs, machine)
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


def render(costs: dict[str, list[float]], machine: dict[str, str]) -> str:
    lines = [
        "# What a pick costs",
        "",
        f"{machine['cpu']}, {machine['python']}; microseconds of CPU time, median of {REPEATS} repeats of "
        f"{PICKS} picks, the two readings "
        f"of the clock included. Growth: cost at {SIZES[-1]} instances over the cost at {SIZES[1]}. "
        "Made by `python benchmarks/pick_cost.py`.",
        "",
        "| strategy | " + " | ".join(f"N = {size}" for size in SIZES) + " | growth | limits |",
        "| --- |" + " ---: |" * (len(SIZES) + 1) + " --- |",
    ]
    for name, values in costs.items():
        cells = " | ".join(f"{value:.1f}" for value in values)
        growth = values[-1] / values[1]
        lines.append(f"| {name} | {cells} | {growth:.0f}-fold | {verdict(values)} |")
    limits = ", ".join(f"{limit:g} µs at {size}" for size, limit in LIMITS_US.items())
    return "\n".join([*lines, "", f"Limits: {limits}.", ""])


def verdict(values: list[float]) -> str:
    over = [size for size, limit in LIMITS_US.items() if values[SIZES.index(size)] > limit]
    return "holds" if not over else "missed at " + ", ".join(map(str, over))


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
