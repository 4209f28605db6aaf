"""What a gateway believes of the fleet, and what it learns from.

`load` of an instance = the newest known in-flight count + own sends - own completions since, kept in place on the
`policies.base.Instance` objects that strategies see. Where the newest count comes from is the `Knowledge`:

- reports: the instance's own count rides on each of its answers to this gateway (after the answer has left it);
- exchange: every `exchange_s` each gateway tells the others how many requests it has in flight on each instance (the gateways
  take turns within the period); the newest count is the sum of what the others last said, and its own count is exact;
- both: whichever is newer, per instance;
- fading (with any of the above): what the newest count says of the others' requests (its own it knows) is believed less
  the older it is: it moves towards the fleet's mean of them with a time constant of `fade_s`;
- truth: one set of instances for all gateways, always exact. Nobody has this; it is the yardstick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from random import Random
from typing import Protocol

from policies.base import Instance, Request, Strategy
from simulation.servers import Server


@dataclass(frozen=True, slots=True)
class Knowledge:
    reports: bool = False
    exchange_s: float | None = None
    truth: bool = False
    fade_s: float | None = None

    @property
    def label(self) -> str:
        if self.truth:
            return "true counts"
        exchange = "" if self.exchange_s is None else f"exchange {self.exchange_s:g}"
        known = " + ".join(part for part in ("reports" if self.reports else "", exchange) if part) or "own counts"
        return known if self.fade_s is None else f"{known}, fading {self.fade_s:g}"


OWN = Knowledge()
REPORTS = Knowledge(reports=True)
TRUTH = Knowledge(truth=True)


def exchange(every_s: float) -> Knowledge:
    return Knowledge(exchange_s=every_s)


@dataclass(frozen=True, slots=True)
class Site:
    """What a strategy is built with. `servers` are for yardsticks and probes only."""

    instances: Sequence[Instance]
    servers: Sequence[Server]
    rng: Random


class Observe(Protocol):
    """Told of every answer: which instance, for how long, did it succeed, its load as known before the request was sent."""

    def __call__(self, now: float, instance: Instance, elapsed: float, ok: bool, level: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Chooser:
    strategy: Strategy
    observe: Observe | None = None


Build = Callable[[Site], Chooser]


@dataclass(slots=True)
class Gateway:
    instances: list[Instance]
    knowledge: Knowledge
    chooser: Chooser
    eligible: list[Instance] = field(init=False)
    own: list[int] = field(init=False)  # in flight from here, per instance
    others: list[int] = field(init=False)  # in flight from the other gateways, as last heard
    heard_at: list[float] = field(init=False)
    said: list[int] = field(init=False)  # what it last told the others

    def __post_init__(self) -> None:
        size = len(self.instances)
        self.eligible = list(self.instances)
        self.own, self.others, self.said = [0] * size, [0] * size, [0] * size
        self.heard_at = [0.0] * size

    def pick(self, now: float) -> tuple[int, int]:
        """Which instance, and the load it was believed to have."""
        if self.knowledge.fade_s is not None:
            self._fade(now, self.knowledge.fade_s)
        instance = self.chooser.strategy.pick(self.eligible, Request(now=now))
        if instance is None:
            raise AssertionError("a strategy found nobody among instances of which all are eligible")
        return self.instances.index(instance), round(instance.load)

    def sent(self, index: int) -> None:
        self.own[index] += 1
        if not self.knowledge.truth:
            self.instances[index].load += 1

    def ended(self, now: float, index: int, report: int | None) -> None:
        """A request to this instance is over; `report` is its in-flight count if it said so."""
        self.own[index] -= 1
        if self.knowledge.truth:
            return
        if report is not None and self.knowledge.reports:
            self.hear(now, index, report - self.own[index])
        else:
            self.instances[index].load -= 1

    def hear(self, now: float, index: int, others: int) -> None:
        self.others[index] = others
        self.heard_at[index] = now
        self.instances[index].load = self.own[index] + others

    def hear_all(self, now: float, others: list[int]) -> None:
        self.others = others
        self.heard_at = [now] * len(others)
        if self.knowledge.fade_s is None:  # else the next pick does it
            for instance, own, count in zip(self.instances, self.own, others, strict=True):
                instance.load = own + count

    def _fade(self, now: float, fade_s: float) -> None:
        mean = sum(self.others) / len(self.others)
        for instance, own, count, at in zip(self.instances, self.own, self.others, self.heard_at, strict=True):
            # `load` is declared as a whole number; every rule here also takes a fraction
            instance.load = own + mean + (count - mean) * exp((at - now) / fade_s)  # type: ignore[assignment]


def tell(now: float, speaker: Gateway, gateways: Sequence[Gateway]) -> None:
    """`speaker` tells the others its own in-flight counts."""
    only_changes = not speaker.knowledge.reports and speaker.knowledge.fade_s is None
    if only_changes and speaker.own == speaker.said:
        return
    listeners = [gateway for gateway in gateways if gateway is not speaker]
    if only_changes:
        news = [(i, own - said) for i, (own, said) in enumerate(zip(speaker.own, speaker.said, strict=True)) if own != said]
        for listener in listeners:
            for index, difference in news:
                listener.others[index] += difference
                listener.instances[index].load += difference
    speaker.said[:] = speaker.own
    if only_changes:
        return
    totals = [sum(counts) for counts in zip(*(gateway.said for gateway in gateways), strict=True)]
    for listener in listeners:  # what was said before may have been overtaken by a report, or faded: all of it is news
        listener.hear_all(now, [total - said for total, said in zip(totals, listener.said, strict=True)])
