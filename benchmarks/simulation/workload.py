"""Traces of requests: arrival time, gateway, and amount of work of each.

A trace is drawn once per (scenario, seed) and replayed to every contender, so that differences between contenders are
not due to chance. The mean service time on an instance of speed 1 is one second unless a scenario says otherwise,
because rules speak of seconds: a failure counts as + 5 s, the window is 5 min, a request times out after 60 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Draw = Callable[[Random], float]

SIGMA = 1.5  # of the log-normal: the squared coefficient of variation is 8.5
SIZES, SHARES = (1.0, 10.0, 60.0), (0.80, 0.15, 0.05)  # of the agent mix: short turns, tools, long research
MIX_MEAN = sum(size * share for size, share in zip(SIZES, SHARES, strict=True))
BURST_S = 10.0  # mean length of a burst, and of the quiet after it
BURST_FACTOR = 1.5  # arrivals in a burst; in the quiet 2 - this


@dataclass(frozen=True, slots=True)
class Trace:
    """Parallel lists, in order of arrival. `entry` in [0, 1) selects the gateway, for any number of gateways."""

    arrivals: list[float]
    work: list[float]
    entry: list[float]

    def __len__(self) -> int:
        return len(self.arrivals)


def exponential(rng: Random) -> float:
    return rng.expovariate(1.0)


def log_normal(rng: Random) -> float:
    return rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)


def agent_mix(rng: Random) -> float:
    """Three kinds of turns, each ± 50 %, mean 1."""
    size = rng.choices(SIZES, SHARES)[0]
    return size / MIX_MEAN * rng.uniform(0.5, 1.5)


SERVICE: dict[str, Draw] = {"exponential": exponential, "log-normal": log_normal, "agent-mix": agent_mix}


def poisson(rng: Random, rate: float, count: int) -> list[float]:
    now, times = 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def bursty(rng: Random, rate: float, count: int) -> list[float]:
    """A Markov-modulated Poisson process: bursts of 1.5 times the rate, quiets of half of it."""
    times: list[float] = []
    now, in_burst = 0.0, True
    change = rng.expovariate(1 / BURST_S)
    while len(times) < count:
        step = rng.expovariate(rate * (BURST_FACTOR if in_burst else 2 - BURST_FACTOR))
        if now + step < change:
            now += step
            times.append(now)
        else:  # memoryless: begin again at the change
            now, in_burst = change, not in_burst
            change += rng.expovariate(1 / BURST_S)
    return times


ARRIVALS: dict[str, Callable[[Random, float, int], list[float]]] = {"poisson": poisson, "bursty": bursty}


def draw(
    seed: int, *, count: int, rate: float, arrivals: str = "poisson", service: str = "exponential", service_s: float = 1.0
) -> Trace:
    """`rate` in requests per second, fleet-wide. The same arguments give the same trace."""
    streams = [Random(f"{seed}/{name}") for name in ("arrivals", "work", "entry")]
    work = SERVICE[service]
    return Trace(
        ARRIVALS[arrivals](streams[0], rate, count),
        [service_s * work(streams[1]) for _ in range(count)],
        [streams[2].random() for _ in range(count)],
    )


def erlang_c_wait(servers: int, load: float) -> float:
    """Mean waiting time of M/M/c, in mean service times; `load` per server."""
    offered = servers * load
    none_waits = sum(offered**k / math.factorial(k) for k in range(servers))
    all_busy = offered**servers / math.factorial(servers) / (1 - load)
    return all_busy / (none_waits + all_busy) / (servers * (1 - load))
