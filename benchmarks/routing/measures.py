"""What is measured of a running router, in this order; each measure gives one `Run`.

    requests-N   N connections, each with its next request as soon as it has its answer (wrk)
    paced        requests at a fixed rate
    streams-N    N streams at the same time
    standing     memory before the first of these and after the last, and CPU time without load
    failover     requests at a fixed rate, each with 50 ms of work, while one of the two instances is killed

CPU seconds are those of the router's own processes, while the load of that measure ran.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from comparison import wrk

from routing import paced, streams, usage
from routing.figures import Run, per_thousand
from routing.paced import chat
from routing.routers import RESTART_S, Router

IDLE_S = 2.0
WORK_MS = 50
KILL_AT_S = 1.5


@dataclass(frozen=True)
class Plan:
    """How much is measured. `streams`: streams at a time -> how many in all."""

    seconds: int = 5  # of each run of wrk and of the paced requests
    warm_up_s: int = 2
    connections: Sequence[int] = (1, 16, 64)
    rate: int = 200
    streams: Mapping[int, int] = field(default_factory=lambda: {20: 1000, 500: 2000})
    failover_s: float = 8.0


QUICK = Plan(seconds=1, warm_up_s=1, streams={20: 60, 500: 500}, failover_s=5.0)


def measure(router: Router, plan: Plan, binary: str, round: int) -> Iterator[Run]:
    """Everything but failover, which ends an instance. `binary`: of wrk."""
    start = usage.of(router.own())
    time.sleep(IDLE_S)
    idle_cores = usage.of(router.own()).since(start) / IDLE_S
    (first, *_) = router.targets
    wrk.run(binary, first.url, chat(), connections=16, seconds=plan.warm_up_s, headers=first.headers)
    for connections in plan.connections:
        figures, spent = _requests(router, plan, binary, connections)
        yield Run(router.name, f"requests-{connections}", round, {**figures, **spent})
    samples = paced.run(router.targets, rate=plan.rate, seconds=plan.seconds)
    yield Run(router.name, "paced", round, paced.latency(samples))
    for concurrent, total in plan.streams.items():
        before = usage.of(router.own())
        seen = streams.run(router.targets, concurrent=concurrent, streams=total)
        spent = _cpu(router, before, total)
        yield Run(router.name, f"streams-{concurrent}", round, {**streams.figures(seen), **spent})
    if router.own():
        end, beside = usage.of(router.own()).rss_mb, usage.of(router.beside()).rss_mb
        figures = {"start_mb": start.rss_mb, "end_mb": end, "beside_mb": beside, "idle_cores": idle_cores}
        yield Run(router.name, "standing", round, figures)


def _requests(router: Router, plan: Plan, binary: str, connections: int) -> tuple[dict[str, float], dict[str, float]]:
    (target, *_) = router.targets
    beside_before = usage.of(router.beside())
    before = usage.of(router.own())
    found = wrk.run(binary, target.url, chat(), connections=connections, seconds=plan.seconds, headers=target.headers)
    spent = _cpu(router, before, found.requests)
    if beside := router.beside():
        spent["beside_cores"] = usage.of(beside).since(beside_before) / found.seconds
    answered = max(0, found.requests - found.refused)
    figures = {
        "per_second": answered / found.seconds,
        "p50_ms": found.p50_ms,
        "p99_ms": found.p99_ms,
        "errors": found.refused + found.broken,
    }
    return figures, spent


def _cpu(router: Router, before: usage.Usage, count: int) -> dict[str, float]:
    """CPU seconds per 1,000 since `before`; nothing for a direct call, which has no router."""
    own = router.own()
    return {"cpu_s_per_1000": per_thousand(usage.of(own).since(before), count)} if own else {}


def fail_over(router: Router, plan: Plan, round: int) -> Run:
    """Kill one instance under load. The only one of the round: what a router holds of an instance is of unequal length."""
    assert router.kill is not None
    events = [(KILL_AT_S, router.kill)]
    if router.restart is not None:
        events.append((KILL_AT_S + RESTART_S, router.restart))
    ids = f"{router.name}-{round}-"
    samples = paced.run(router.targets, rate=plan.rate, seconds=plan.failover_s, ids=ids, work_ms=WORK_MS, events=events)
    time.sleep(1)  # a retry that is still under way
    return Run(router.name, "failover", round, paced.failover(samples, (id for id, _ in router.executions()), KILL_AT_S))
