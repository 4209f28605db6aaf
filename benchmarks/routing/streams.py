"""Streams that run at the same time, each checked chunk by chunk.

A closed loop: a client starts its next stream when the last one has ended. Its connections are open before the first stream,
and the clients begin one after the other over the length of a stream.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from routing.client import Answer, Connection, Target
from routing.figures import percentile
from routing.paced import chat
from routing.stub import CHUNKS, END, GAP_S

TIMEOUT_S = 60.0
CHUNK = re.compile(rb'"system_fingerprint": ?"(\d+)".*"content": ?"tok(\d+) "')


@dataclass(frozen=True)
class Stream:
    """One stream. Times in ms from the request; `delays_ms`: of each chunk, from where the agent sent it.

    `lost`: chunks that did not arrive; `disordered`: whether a chunk arrived twice or before one that was sent earlier.
    """

    first_ms: float
    last_ms: float
    delays_ms: tuple[float, ...]
    lost: int
    disordered: bool


def read(answer: Answer) -> Stream:
    """The chunks of an answer, from its pieces, which need not be cut where the events are."""
    text, seen, times, delays = b"", [], [], []
    ended = False
    for at_ns, piece in answer.pieces if answer.status == 200 else ():
        *events, text = (text + piece).split(b"\n\n")
        for event in events:
            if (found := CHUNK.search(event)) is not None:
                seen.append(int(found[2]))
                times.append((at_ns - answer.sent_ns) / 1e6)
                delays.append((at_ns - int(found[1])) / 1e6)
            ended = ended or event == END.strip()
    lost = len(set(range(CHUNKS)).difference(seen))
    if not ended and not lost:
        lost = 1  # the end itself
    ordered = seen == sorted(set(seen))
    return Stream(times[0] if times else 0.0, times[-1] if times else 0.0, tuple(delays), lost, not ordered)


def run(targets: Sequence[Target], *, concurrent: int, streams: int) -> list[Stream]:
    """Run `streams` streams, `concurrent` of them at a time."""
    loop = uvloop.new_event_loop()
    try:
        answers = loop.run_until_complete(_run(targets, concurrent, streams))
    finally:
        loop.close()
    return [read(answer) for answer in answers]


async def _run(targets: Sequence[Target], concurrent: int, streams: int) -> list[Answer]:
    answers: list[Answer] = []
    left = streams

    async def client(number: int, connection: Connection) -> None:
        nonlocal left
        target = targets[number % len(targets)]
        request = target.request(chat(stream=True))
        await asyncio.sleep(number / concurrent * CHUNKS * GAP_S)
        while left > 0:
            left -= 1
            if not connection.usable:
                try:
                    connection = await Connection.open(target)
                except OSError:
                    answers.append(Answer(0))
                    continue
            answers.append(await connection.ask(request, TIMEOUT_S))
        connection.close()

    connections = [await Connection.open(targets[number % len(targets)]) for number in range(concurrent)]
    await asyncio.gather(*(client(number, connection) for number, connection in enumerate(connections)))
    await asyncio.sleep(0.01)  # lets the transports close
    return answers


def figures(streams: Sequence[Stream]) -> dict[str, float]:
    """Percentiles over the streams that arrived whole, and over all of their chunks."""
    whole = [stream for stream in streams if not stream.lost and not stream.disordered]
    first, last = sorted(stream.first_ms for stream in whole), sorted(stream.last_ms for stream in whole)
    delays = sorted(delay for stream in whole for delay in stream.delays_ms)
    return {
        "streams": len(streams),
        "lost_chunks": sum(stream.lost for stream in streams),
        "disordered": sum(stream.disordered for stream in streams),
        "first_p50_ms": percentile(first, 50),
        "first_p99_ms": percentile(first, 99),
        "last_p50_ms": percentile(last, 50),
        "last_p99_ms": percentile(last, 99),
        "delay_p50_ms": percentile(delays, 50),
        "delay_p99_ms": percentile(delays, 99),
    }
