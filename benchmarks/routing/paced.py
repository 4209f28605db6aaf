"""Requests at a fixed rate, whatever the router does (an open loop). Each is timed from the moment at which it was due.

A router that stalls therefore shows every request that waited, not only the one that it was busy with.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from routing.client import BROKEN, Connection, Target
from routing.figures import percentile
from routing.stub import MODEL

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Sample:
    """One request. Times in ns; `status` BROKEN: no whole answer."""

    id: str
    due_ns: int
    ended_ns: int
    status: int

    @property
    def ms(self) -> float:
        return (self.ended_ns - self.due_ns) / 1e6


def chat(*, stream: bool = False, id: str = "", work_ms: int = 0) -> bytes:
    """The JSON of a chat request. With `id`, the stub writes its execution down and takes `work_ms` for it."""
    request: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "Where is my order 1042?"}]}
    if stream:
        request["stream"] = True
    if id:
        request["metadata"] = {"id": id, "work_ms": str(work_ms)}
    return json.dumps(request).encode()


def run(
    targets: Sequence[Target],
    *,
    rate: int,
    seconds: float,
    ids: str = "",
    work_ms: int = 0,
    events: Iterable[tuple[float, Callable[[], None]]] = (),
) -> list[Sample]:
    """Send `rate` requests per second to the targets in turn. `ids`: their prefix; `events`: (second, what is done then)."""
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())  # epoll would round its timers to milliseconds
    try:
        return loop.run_until_complete(_run(targets, rate, seconds, ids, work_ms, events))
    finally:
        loop.close()


async def _run(
    targets: Sequence[Target],
    rate: int,
    seconds: float,
    ids: str,
    work_ms: int,
    events: Iterable[tuple[float, Callable[[], None]]],
) -> list[Sample]:
    loop = asyncio.get_running_loop()
    idle: dict[str, list[Connection]] = {target.url: [] for target in targets}

    async def one(number: int, due_ns: int, target: Target) -> Sample:
        id = f"{ids}{number}" if ids else ""
        request = target.request(chat(id=id, work_ms=work_ms))
        waiting = idle[target.url]
        connection = None
        while waiting and connection is None:
            last = waiting.pop()
            connection = last if last.usable else None
        try:
            connection = connection or await asyncio.wait_for(Connection.open(target), TIMEOUT_S)
        except (OSError, asyncio.TimeoutError):
            return Sample(id, due_ns, time.monotonic_ns(), BROKEN)
        answer = await connection.ask(request, TIMEOUT_S)
        ended = time.monotonic_ns()
        if connection.usable:
            waiting.append(connection)
        return Sample(id, due_ns, answer.ended_ns or ended, answer.status)

    began, began_ns = loop.time() + 0.05, time.monotonic_ns() + 50_000_000
    for at_s, action in events:
        loop.call_at(began + at_s, action)
    tasks = []
    for number, target in zip(range(int(rate * seconds)), itertools.cycle(targets), strict=False):
        due_s = number / rate
        await asyncio.sleep(began + due_s - loop.time())
        tasks.append(loop.create_task(one(number, began_ns + int(due_s * 1e9), target)))
    samples = await asyncio.gather(*tasks)
    for connection in itertools.chain.from_iterable(idle.values()):
        connection.close()
    await asyncio.sleep(0)  # lets the transports close
    return samples


def latency(samples: Sequence[Sample]) -> dict[str, float]:
    """Percentiles of the whole answers, and how many requests failed."""
    times = sorted(sample.ms for sample in samples if sample.status == 200)
    return {
        "requests": len(samples),
        "errors": len(samples) - len(times),
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
    }


def failover(samples: Sequence[Sample], executions: Iterable[str], kill_at_s: float) -> dict[str, float]:
    """What clients noticed of the kill. `executions`: the id of each execution; `kill_at_s`: after the first request was due.

    `under_way`: requests that waited for their answer at the kill, from either instance. `slowest_ms`: the longest that a
    request took, failed ones included. `gap_ms`: the longest time without an answer of 200.
    """
    answered = sorted(sample.ended_ns for sample in samples if sample.status == 200)
    gaps = [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(answered)]
    runs = Counter(executions)
    killed_ns = samples[0].due_ns + kill_at_s * 1e9
    return {
        "requests": len(samples),
        "under_way": sum(sample.due_ns <= killed_ns < sample.ended_ns for sample in samples),
        "failed": sum(sample.status != 200 for sample in samples),
        "slowest_ms": max((sample.ms for sample in samples), default=0.0),
        "gap_ms": max(gaps, default=0.0),
        "ran_twice": sum(runs[sample.id] > 1 for sample in samples),
    }
