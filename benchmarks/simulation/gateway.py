"""What a gateway knows about the fleet, and from which sources.

`load` on the `policies.base.Instance` objects that strategies see is kept by a `policies.load_view.LoadView`, the very
object that runs in a gateway. It is fed by what the `Knowledge` allows:

- own counts: its own requests only;
- reports: the instance's own count rides on each of its answers to this gateway (after the answer has left it);
- exchange: every `exchange_s` each gateway tells the others how many requests it has in flight on each instance (they
  take turns within the period; one with nothing new to say is silent);
- believed in full: what was heard does not fade;
- truth: one set of instances for all gateways, always exact. Nobody has this; it is the yardstick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import NamedTuple, Protocol

from policies.base import Instance, Request, Strategy
from policies.breaker import Breaker
from policies.load.load_view import FADE, LoadView
from simulation.servers import Server


@dataclass(frozen=True, slots=True)
class Knowledge:
    reports: bool = False
    exchange_s: float | None = None
    truth: bool = False
    fade: float = FADE  # of LoadView

    @property
    def label(self) -> str:
        if self.truth:
            return "true counts"
        exchange = "" if self.exchange_s is None else f"exchange {self.exchange_s:g}"
        known = " + ".join(part for part in ("reports" if self.reports else "", exchange) if part) or "own counts"
        if self.fade == FADE:
            return known
        return f"{known}, believed in full" if self.fade == inf else f"{known}, fading {self.fade:g}"


OWN = Knowledge()
REPORTS = Knowledge(reports=True)
TRUTH = Knowledge(truth=True)


def exchange(every_s: float, reports: bool = False) -> Knowledge:
    return Knowledge(exchange_s=every_s, reports=reports)


@dataclass(frozen=True, slots=True)
class Site:
    """What a strategy is built with. `servers` are for yardsticks and probes only."""

    instances: Sequence[Instance]
    servers: Sequence[Server]
    rng: Random


class Observe(Protocol):
    """Told of every answer: which instance, for how long, did it succeed, and the instance's requests in flight when
    the request arrived there (as the answer says; if none came, as the gateway believed)."""

    def __call__(self, now: float, instance: Instance, elapsed: float, ok: bool, level: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Chooser:
    strategy: Strategy
    observe: Observe | None = None


Build = Callable[[Site], Chooser]


class Report(NamedTuple):
    """The load that a response carries: requests in flight at the instance, now and when the request arrived."""

    in_flight: int
    on_arrival: int


class Ticket(NamedTuple):
    """A request that this gateway has sent."""

    place: int  # of the instance in the list
    sent_at: float
    believed: float  # load of the instance before
    generation: int  # of the instance's breaker


@dataclass(slots=True)
class Gateway:
    instances: list[Instance]
    knowledge: Knowledge
    chooser: Chooser
    breakers: list[Breaker] | None = None
    eligible: list[Instance] = field(init=False)  # by the health checks
    view: LoadView = field(init=False)
    said: list[int] = field(init=False)  # what it last told the others

    def __post_init__(self) -> None:
        self.eligible = list(self.instances)
        self.view = LoadView(self.knowledge.fade)
        self.said = [0] * len(self.instances)

    def send(self, now: float) -> Ticket | None:
        """Choose an instance; None if none is available."""
        exact = self.knowledge.truth
        if not exact:
            self.view.refresh(self.instances, now)
        instance = self.chooser.strategy.pick(self._allowed(now), Request(now=now))
        if instance is None:
            return None
        place, generation = self.instances.index(instance), 0
        if self.breakers:
            self.breakers[place].allow(now)
            generation = self.breakers[place].generation
        ticket = Ticket(place, now, instance.load, generation)
        if not exact:
            self.view.sent(instance)
        return ticket

    def ended(self, now: float, ticket: Ticket, ok: bool, report: Report | None) -> bool:
        """That request is over; `report` None: without an answer. True if its breaker's state changed for the others."""
        instance, elapsed = self.instances[ticket.place], now - ticket.sent_at
        knows = report is not None and self.knowledge.reports
        if not self.knowledge.truth:
            self.view.done(instance)
            if report is not None and knows:
                self.view.reported(instance, report.in_flight, now)
            if ok:
                self.view.answered(elapsed)
        if self.chooser.observe is not None:
            level = report.on_arrival if report is not None and knows else ticket.believed
            self.chooser.observe(now, instance, elapsed, ok, level)
        return self.breakers is not None and self.breakers[ticket.place].record(ok, now, ticket.generation)

    def _allowed(self, now: float) -> Sequence[Instance]:
        if self.breakers is None:
            return self.eligible
        open_ = {place for place, breaker in enumerate(self.breakers) if not breaker.may(now)}
        if not open_:
            return self.eligible
        return [i for i in self.eligible if self.instances.index(i) not in open_]


def tell(now: float, speaker: Gateway, gateways: Sequence[Gateway]) -> None:
    """Send `speaker`'s own in-flight counts to the other gateways."""
    own = [speaker.view.own(instance) for instance in speaker.instances]
    if own == speaker.said:
        return
    speaker.said = own
    totals = [sum(counts) for counts in zip(*(gateway.said for gateway in gateways), strict=True)]
    for listener in gateways:
        if listener is not speaker:
            for instance, total, said in zip(listener.instances, totals, listener.said, strict=True):
                listener.view.exchanged(instance, total - said, now)
