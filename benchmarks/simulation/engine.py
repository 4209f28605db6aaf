"""Runs one trace of requests through gateways to servers, event by event.

Everything random comes from the seed, so that a run is a function of its arguments. `central_queue` is the reference: one
queue for the whole fleet, whose head takes the fastest free slot, which no system with more than one gateway can do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random

from policies.base import Instance
from policies.breaker import Breaker
from simulation.gateway import Build, Gateway, Knowledge, Report, Site, Ticket, tell
from simulation.servers import FailingFast, Freezing, Queueing, Server, Sharing
from simulation.workload import Trace

FAILS_IN_S = 0.001
REQUEST_TIMEOUT_S = 60.0  # the default of limits.requestTimeout
NEWS_S = 1.0  # until a breaker's change is known at the other gateways
DONE, TIMEOUT, LEAVES, NEWS = 0, 1, 2, 3  # kinds of events; the order breaks ties of time


@dataclass(frozen=True, slots=True)
class Fleet:
    """`bad` names the one instance that freezes or fails, if any."""

    speeds: tuple[float, ...] = (1.0,) * 8
    slots: int = 1
    sharing: bool = False
    fails_fast: bool = False
    freezes_at: float | None = None
    leaves_after: float | None = None  # how long after freezing the health checks take it out of rotation; None: never
    breaker: tuple[int, float] | None = None  # failures in a row that open one, seconds until its probe; None: breakers off
    bad: int | None = None

    @property
    def capacity(self) -> float:
        """Requests in one mean service time, if all are well."""
        return self.slots * sum(self.speeds)

    def servers(self) -> list[Server]:
        return [self._server(index, speed) for index, speed in enumerate(self.speeds)]

    def _server(self, index: int, speed: float) -> Server:
        if index == self.bad and self.fails_fast:
            return FailingFast(FAILS_IN_S)
        server = Sharing(speed) if self.sharing else Queueing(speed, self.slots)
        if index == self.bad and self.freezes_at is not None:
            return Freezing(server, self.freezes_at)
        return server


@dataclass(slots=True)
class Outcome:
    """Per request, in order of arrival: time from arrival to answer, whether it succeeded, which instance."""

    elapsed: list[float]
    ok: list[bool]
    chosen: list[int]


def run(trace: Trace, fleet: Fleet, build: Build, knowledge: Knowledge, *, gateways: int = 4, seed: int = 0) -> Outcome:
    """Every request of the trace, until the last has ended."""
    return _Run(trace, fleet, build, knowledge, gateways, seed).outcome()


@dataclass(slots=True)
class _Run:
    trace: Trace
    fleet: Fleet
    build: Build
    knowledge: Knowledge
    count: int
    seed: int
    servers: list[Server] = field(init=False)
    gateways: list[Gateway] = field(init=False)
    result: Outcome = field(init=False)
    tickets: list[Ticket | None] = field(init=False)  # of the requests under way
    arrived: list[int] = field(init=False)  # requests in flight at the instance before this one
    events: list[tuple[float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = len(self.trace)
        self.servers = self.fleet.servers()
        self.gateways = self._gateways()
        self.result = Outcome([0.0] * size, [False] * size, [-1] * size)
        self.tickets = [None] * size
        self.arrived = [0] * size
        if self.fleet.freezes_at is not None and self.fleet.leaves_after is not None:
            heappush(self.events, (self.fleet.freezes_at + self.fleet.leaves_after, LEAVES, -1))

    def outcome(self) -> Outcome:
        arrivals, events, size = self.trace.arrivals, self.events, len(self.trace)
        step = (self.knowledge.exchange_s or inf) / self.count
        next_request, speaker, tick = 0, 0, step
        while next_request < size or events:
            arrival = arrivals[next_request] if next_request < size else inf
            event = events[0][0] if events else inf
            if tick < arrival and tick < event:
                tell(tick, self.gateways[speaker], self.gateways)
                speaker = (speaker + 1) % self.count
                tick += step
            elif arrival <= event:
                self._arrive(arrival, next_request)
                next_request += 1
            else:
                now, kind, request = heappop(events)
                self._happen(now, kind, request)
        return self.result

    def _gateways(self) -> list[Gateway]:
        shared = self._instances()
        sites = [
            Site(shared if self.knowledge.truth else self._instances(), self.servers, Random(f"{self.seed}/gateway {number}"))
            for number in range(self.count)
        ]
        return [Gateway(list(site.instances), self.knowledge, self.build(site), self._breakers()) for site in sites]

    def _breakers(self) -> list[Breaker] | None:
        return None if self.fleet.breaker is None else [Breaker(*self.fleet.breaker) for _ in self.fleet.speeds]

    def _instances(self) -> list[Instance]:
        return [Instance(id=f"instance-{index}") for index in range(len(self.fleet.speeds))]

    def _gateway_of(self, request: int) -> Gateway:
        return self.gateways[int(self.trace.entry[request] * self.count)]

    def _arrive(self, now: float, request: int) -> None:
        ticket = self.tickets[request] = self._gateway_of(request).send(now)
        if ticket is None:
            return  # refused: neither answered nor sent
        index = self.result.chosen[request] = ticket.place
        server = self.servers[index]
        self.arrived[request] = server.in_flight
        done = server.arrive(now, request, self.trace.work[request])
        self._learn_truth(index)
        if done is not None:
            heappush(self.events, (done[0], DONE, done[1]))
        if index == self.fleet.bad and self.fleet.freezes_at is not None:
            heappush(self.events, (now + REQUEST_TIMEOUT_S, TIMEOUT, request))

    def _happen(self, now: float, kind: int, request: int) -> None:
        if kind == DONE:
            self._finish(now, request)
        elif kind == TIMEOUT:
            self._end(now, request, ok=False, report=None)
        elif kind == NEWS:
            self._spread(now, self._gateway_of(request), self.result.chosen[request])
        else:
            for gateway in self.gateways:
                gateway.eligible = [i for n, i in enumerate(gateway.instances) if n != self.fleet.bad]

    def _finish(self, now: float, request: int) -> None:
        index = self.result.chosen[request]
        server = self.servers[index]
        if not server.is_current(now, request):
            return
        follower = server.finish(now, request)
        if follower is not None:
            heappush(self.events, (follower[0], DONE, follower[1]))
        self._learn_truth(index)
        ok = not (self.fleet.fails_fast and index == self.fleet.bad)
        self._end(now, request, ok=ok, report=Report(server.in_flight, self.arrived[request]))

    def _end(self, now: float, request: int, *, ok: bool, report: Report | None) -> None:
        """Only the first end of a request counts: a response after the timeout is ignored."""
        ticket = self.tickets[request]
        if ticket is None:
            return
        self.tickets[request] = None
        self.result.elapsed[request] = now - ticket.sent_at
        self.result.ok[request] = ok
        if self._gateway_of(request).ended(now, ticket, ok, report):
            heappush(self.events, (now + NEWS_S, NEWS, request))

    def _spread(self, now: float, speaker: Gateway, place: int) -> None:
        for gateway in self.gateways:
            if speaker.breakers and gateway.breakers and gateway is not speaker:
                gateway.breakers[place].merge_remote(speaker.breakers[place].report(now), now)

    def _learn_truth(self, index: int) -> None:
        if self.knowledge.truth:
            self.gateways[0].instances[index].load = self.servers[index].in_flight


def central_queue(trace: Trace, fleet: Fleet) -> Outcome:
    """One first-come-first-served queue to all slots; a bad instance takes no part. Sharing counts as one slot."""
    size = len(trace)
    result = Outcome([0.0] * size, [True] * size, [-1] * size)
    slots = [(-speed, n) for n, speed in enumerate(fleet.speeds) if n != fleet.bad for _ in range(fleet.slots)]
    free = sorted(slots)  # a heap: the fastest first
    busy: list[tuple[float, tuple[float, int]]] = []  # heap of (when it is free again, slot)
    waiting: deque[int] = deque()

    def start(now: float, request: int) -> None:
        slot = heappop(free)
        done = now + trace.work[request] / -slot[0]
        heappush(busy, (done, slot))
        result.elapsed[request] = done - trace.arrivals[request]
        result.chosen[request] = slot[1]

    def free_until(now: float) -> None:
        while busy and busy[0][0] <= now:
            done, slot = heappop(busy)
            heappush(free, slot)
            if waiting:
                start(done, waiting.popleft())

    for request, now in enumerate(trace.arrivals):
        free_until(now)
        if free:
            start(now, request)
        else:
            waiting.append(request)
    free_until(inf)
    return result
