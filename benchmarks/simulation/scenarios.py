"""The scenarios, the contenders, and the plan of a whole comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

from simulation import peers, production
from simulation.engine import Fleet
from simulation.gateway import OWN, REPORTS, TRUTH, Build, Knowledge, exchange

LOAD = 0.8
GATEWAYS = 4
EXCHANGE_S = 0.1
GATEWAY_COUNTS = (1, 2, 4, 8)
EXCHANGES_S = (0.1, 0.3, 1.0, 3.0)
FREEZES_AT_SHARE = 0.1  # of the run: with the end of the warm-up
LEAVES_AFTER_S = 95.0  # healthCheck's defaults at the latest: every 30 s, out after 3 that each fail after 5 s
BREAKER = (5, 60.0)  # circuitBreaker's defaults: failureThreshold, resetTimeout
AFTERMATH_S = 300.0  # then only the first five minutes after freezing count, or a long run would hide what was lost


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    fleet: Fleet = field(default_factory=Fleet)
    arrivals: str = "poisson"
    service: str = "exponential"
    counted_s: float | None = None  # from the moment of freezing; None: to the end
    service_s: float = 1.0  # the mean service time

    @property
    def rate(self) -> float:
        return LOAD * self.fleet.capacity / self.service_s

    def sized(self, requests: int) -> Scenario:
        """With the moment of freezing placed in a run of this many requests."""
        if self.fleet.freezes_at is None:
            return self
        return replace(self, fleet=replace(self.fleet, freezes_at=FREEZES_AT_SHARE * requests / self.rate))


EQUAL = Scenario("equal", "8 equal instances, exponential")
LOG_NORMAL = Scenario("log-normal", "8 equal, log-normal (sigma 1.5)", service="log-normal")
AGENT_MIX = Scenario("agent-mix", "8 equal, agent mix", service="agent-mix")
BURSTY = Scenario("bursty", "8 equal, exponential, bursts of 1.5 x the rate", arrivals="bursty")
TWO_SLOW = Scenario("two-slow", "2 of 8 half as fast", Fleet(speeds=(1.0,) * 6 + (0.5,) * 2))
SPEEDS = Scenario("speeds-1124", "speeds 1, 1, 2, 4 (two of each)", Fleet(speeds=(0.5, 0.5, 1.0, 2.0) * 2))
SLOTS = Scenario("5-slots", "8 equal, 5 slots each", Fleet(slots=5))
SHARING = Scenario("sharing", "8 equal, processor sharing, agent mix", Fleet(sharing=True), service="agent-mix")
SCENARIOS = (EQUAL, LOG_NORMAL, AGENT_MIX, BURSTY, TWO_SLOW, SPEEDS, SLOTS, SHARING)

FAILS_FAST = Scenario("fails-fast", "1 of 8 fails in 1 ms, breaker off", Fleet(bad=3, fails_fast=True))
FAILS_FAST_LONG = Scenario(
    "fails-fast-long", "1 of 8 fails in 1 ms, the others take 30 s", Fleet(bad=3, fails_fast=True), service_s=30.0
)
FROZEN = Scenario("frozen", "1 of 8 freezes, no breaker, no health checks", Fleet(bad=3, freezes_at=0.0))
FROZEN_GUARDED = Scenario(
    "frozen-guarded",
    "1 of 8 freezes, breakers and health checks as by default: the first 5 min",
    Fleet(bad=3, freezes_at=0.0, leaves_after=LEAVES_AFTER_S, breaker=BREAKER),
    counted_s=AFTERMATH_S,
)
BAD_INSTANCE = (FAILS_FAST, FAILS_FAST_LONG, FROZEN, FROZEN_GUARDED)


@dataclass(frozen=True, slots=True)
class Contender:
    rule: str
    knowledge: Knowledge
    build: Build

    @property
    def name(self) -> str:
        return f"{self.rule} [{self.knowledge.label}]"


def ours(strategy: str, knowledge: Knowledge) -> Contender:
    return Contender(strategy, knowledge, partial(production.strategy, strategy))


EXCHANGE = exchange(EXCHANGE_S, reports=True)
IN_FULL = replace(REPORTS, fade=inf)
ROUND_ROBIN = ours("round-robin", OWN)
LEAST_REPORTS = ours("least-connections", REPORTS)
LEAST_EXCHANGE = ours("least-connections", EXCHANGE)
LEAST_IN_FULL = ours("least-connections", IN_FULL)
RESPONSE_REPORTS = ours("response-time", REPORTS)
RESPONSE_EXCHANGE = ours("response-time", EXCHANGE)
P2C_REPORTS = Contender("power of two", REPORTS, peers.power_of_two)
P2C_EXCHANGE = Contender("power of two", EXCHANGE, peers.power_of_two)
RANDOM = Contender("random", OWN, peers.random_choice)
JSQ = Contender("shortest queue", TRUTH, peers.shortest_queue)

PEAK_EWMA = Contender("peak-EWMA", EXCHANGE, peers.peak_ewma)
PREQUAL = Contender("Prequal", OWN, peers.prequal)

PEERS = (
    RANDOM,
    P2C_REPORTS,
    P2C_EXCHANGE,
    PEAK_EWMA,
    Contender("hot-cold", EXCHANGE, peers.hot_cold),
    PREQUAL,
    JSQ,
    Contender("shortest expected delay", TRUTH, peers.shortest_delay),
)
OURS = (
    ROUND_ROBIN,
    LEAST_IN_FULL,
    LEAST_REPORTS,
    LEAST_EXCHANGE,
    RESPONSE_REPORTS,
    RESPONSE_EXCHANGE,
)
PEERS_OF_THE_BAD = (RANDOM, P2C_REPORTS, P2C_EXCHANGE, PEAK_EWMA, PREQUAL, JSQ)


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of a table: a contender in a scenario with so many gateways."""

    scenario: Scenario
    contender: Contender
    gateways: int = GATEWAYS

    @property
    def key(self) -> tuple[str, str, int]:
        return self.scenario.name, self.contender.name, self.gateways


def sweep_of_gateways() -> list[Case]:
    return [
        Case(scenario, contender, count)
        for scenario in (EQUAL, SPEEDS)
        for contender in (LEAST_EXCHANGE, RESPONSE_EXCHANGE, LEAST_REPORTS, RESPONSE_REPORTS, LEAST_IN_FULL)
        for count in GATEWAY_COUNTS
    ]


def sweep_of_exchanges() -> list[Case]:
    return [
        Case(scenario, ours(strategy, exchange(every_s, reports)))
        for scenario in (EQUAL, SPEEDS)
        for strategy in ("least-connections", "response-time")
        for reports in (True, False)
        for every_s in EXCHANGES_S
    ]


def plan() -> list[Case]:
    """Every case once, in a fixed order."""
    compared: Sequence[Case] = [
        *(Case(scenario, contender) for scenario in SCENARIOS for contender in OURS + PEERS),
        *(Case(scenario, contender) for scenario in BAD_INSTANCE for contender in (*OURS, *PEERS_OF_THE_BAD)),
        *sweep_of_gateways(),
        *sweep_of_exchanges(),
    ]
    return list({case.key: case for case in compared}.values())
