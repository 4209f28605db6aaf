"""The strategies that SwiftClaw's are compared with, each as its source defines it.

All see the same `load` as SwiftClaw's strategies (random ignores it), unless they are run with true counts. `Prequal`
also gets its probes, answered at once and truthfully, which is better than any network would do.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from random import Random

from policies.base import Instance, Request
from simulation.gateway import Chooser, Site
from simulation.servers import Server


class RandomChoice:
    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        return self._rng.choice(instances) if instances else None


class PowerOfTwo:
    """The less loaded of two drawn at random (Mitzenmacher 2001; NGINX `random two`, Envoy's default)."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if len(instances) < 2:
            return instances[0] if instances else None
        one, other = self._rng.sample(instances, 2)
        return one if one.load <= other.load else other


class ShortestQueue:
    """Join the shortest queue, ties at random. With true counts this is what the literature calls JSQ."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if not instances:
            return None
        least = min(instance.load for instance in instances)
        return self._rng.choice([instance for instance in instances if instance.load == least])


class ShortestDelay:
    """Shortest expected delay: (load + 1) / true speed."""

    def __init__(self, rng: Random, speeds: dict[str, float]) -> None:
        self._rng, self._speeds = rng, speeds

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        delays = [(instance.load + 1) / self._speeds[instance.id] for instance in instances]
        least = min(delays)
        return self._rng.choice([i for i, delay in zip(instances, delays, strict=True) if delay == least])


class PeakEwma:
    """Finagle's and Linkerd's: of two at random the lower latency * (load + 1).

    The latency jumps to a new peak at once and decays towards lower samples with a time constant of 10 s. An instance
    without samples costs 0 if idle, else a penalty, as in Finagle. Theirs counts a gateway's own requests only; here it
    has `load`.
    """

    DECAY_S = 10.0
    PENALTY_S = 1e6

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._cost: dict[str, tuple[float, float]] = {}  # latency, when it was updated

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if len(instances) < 2:
            return instances[0] if instances else None
        one, other = self._rng.sample(instances, 2)
        return one if self._score(one, request.now) <= self._score(other, request.now) else other

    def observe(self, now: float, instance: Instance, elapsed: float, ok: bool, level: float) -> None:
        cost, at = self._cost.get(instance.id, (0.0, now))
        if elapsed < cost:
            keep = exp((at - now) / self.DECAY_S)
            elapsed = cost * keep + elapsed * (1 - keep)
        self._cost[instance.id] = (elapsed, now)

    def _score(self, instance: Instance, now: float) -> float:
        known = self._cost.get(instance.id)
        if known is None:
            return self.PENALTY_S * instance.load
        cost, at = known
        return cost * exp((at - now) / self.DECAY_S) * (instance.load + 1)


class Latencies:
    """What an instance of Prequal answers to a probe: the median of its last times that began at about this many in flight."""

    def __init__(self, keep: int = 16) -> None:
        self._by_level: dict[int, deque[float]] = {}
        self._keep = keep

    def add(self, level: int, elapsed: float) -> None:
        self._by_level.setdefault(level, deque(maxlen=self._keep)).append(elapsed)

    def at(self, level: int) -> float:
        if not self._by_level:
            return 0.0
        nearest = min(self._by_level, key=lambda known: abs(known - level))
        samples = sorted(self._by_level[nearest])
        return samples[len(samples) // 2]


class HotThreshold:
    """The 0.84 quantile of the last in-flight counts seen; more than that is hot (Q_RIF of the paper)."""

    QUANTILE = 0.84

    def __init__(self, keep: int = 128) -> None:
        self._recent: deque[float] = deque()
        self._ordered: list[float] = []
        self._keep = keep

    def add(self, count: float) -> None:
        if len(self._recent) == self._keep:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]
        self._recent.append(count)
        insort(self._ordered, count)

    @property
    def value(self) -> float:
        return self._ordered[int(self.QUANTILE * (len(self._ordered) - 1))] if self._ordered else 0


class HotCold:
    """Prequal's hot-cold rule on what every contender here sees: if all are hot the least loaded, else the cold one
    with the lowest latency (Wydrowski et al., NSDI 2024). No probes."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._latencies: dict[str, Latencies] = {}
        self._hot = HotThreshold()

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if not instances:
            return None
        self._hot.add(self._rng.choice(instances).load)
        limit = self._hot.value
        cold = [instance for instance in instances if instance.load <= limit]
        if not cold:
            return min(instances, key=lambda instance: (instance.load, self._rng.random()))
        return min(cold, key=lambda instance: (self._latency(instance), self._rng.random()))

    def observe(self, now: float, instance: Instance, elapsed: float, ok: bool, level: float) -> None:
        self._latencies.setdefault(instance.id, Latencies()).add(round(level), elapsed)

    def _latency(self, instance: Instance) -> float:
        known = self._latencies.get(instance.id)
        return known.at(round(instance.load)) if known else 0.0


@dataclass(slots=True)
class Probe:
    """An answer in the pool. `count` grows with own sends to this instance."""

    at: float
    instance: Instance
    count: int
    latency: float
    uses: int


class Prequal:
    """The whole of it: 3 probes per request into a pool of 16, hot-cold rule over the pool, each probe used at most
    twice, the oldest and the worst removed in turn (Wydrowski et al., NSDI 2024). A probe expires after one mean
    service time; with fewer than two in the pool the choice is random."""

    PROBES, POOL, REUSE, EXPIRES_S = 3, 16, 2, 1.0

    def __init__(self, site: Site) -> None:
        self._rng = site.rng
        self._servers: dict[str, Server] = {
            instance.id: server for instance, server in zip(site.instances, site.servers, strict=True)
        }
        self._latencies: dict[str, Latencies] = {}
        self._hot = HotThreshold()
        self._pool: list[Probe] = []  # the oldest first
        self._remove_oldest = True

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if not instances:
            return None
        self._ask(instances, request.now)
        members = set(instances)
        self._pool = [p for p in self._pool if p.instance in members and request.now - p.at <= self.EXPIRES_S and p.uses]
        if len(self._pool) < 2:
            return self._rng.choice(instances)
        chosen = min(self._pool, key=self._rank)
        for probe in self._pool:
            if probe.instance is chosen.instance:
                probe.count += 1
        chosen.uses -= 1
        self._forget_one()
        return chosen.instance

    def observe(self, now: float, instance: Instance, elapsed: float, ok: bool, level: float) -> None:
        self._latencies.setdefault(instance.id, Latencies()).add(round(level), elapsed)

    def _ask(self, instances: Sequence[Instance], now: float) -> None:
        for instance in self._rng.sample(instances, min(self.PROBES, len(instances))):
            count = self._servers[instance.id].in_flight
            known = self._latencies.get(instance.id)
            self._hot.add(count)
            self._pool.append(Probe(now, instance, count, known.at(count) if known else 0.0, self.REUSE))
        del self._pool[: -self.POOL]

    def _rank(self, probe: Probe) -> tuple[bool, float]:
        hot = probe.count > self._hot.value
        return hot, float(probe.count) if hot else probe.latency

    def _forget_one(self) -> None:
        if self._remove_oldest:
            del self._pool[0]
        else:
            self._pool.remove(max(self._pool, key=self._rank))
        self._remove_oldest = not self._remove_oldest


def random_choice(site: Site) -> Chooser:
    return Chooser(RandomChoice(site.rng))


def power_of_two(site: Site) -> Chooser:
    return Chooser(PowerOfTwo(site.rng))


def shortest_queue(site: Site) -> Chooser:
    return Chooser(ShortestQueue(site.rng))


def shortest_delay(site: Site) -> Chooser:
    speeds = {i.id: server.speed for i, server in zip(site.instances, site.servers, strict=True)}
    return Chooser(ShortestDelay(site.rng, speeds))


def peak_ewma(site: Site) -> Chooser:
    rule = PeakEwma(site.rng)
    return Chooser(rule, rule.observe)


def hot_cold(site: Site) -> Chooser:
    rule = HotCold(site.rng)
    return Chooser(rule, rule.observe)


def prequal(site: Site) -> Chooser:
    rule = Prequal(site)
    return Chooser(rule, rule.observe)
