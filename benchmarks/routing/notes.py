"""How to read the tables of the comparison, and what they do not show."""

from __future__ import annotations

import textwrap

from routing.stub import CHUNKS, GAP_S

READING = (
    "Each figure is the median of the rounds; errors, lost chunks and what failed or ran twice are sums, `slowest` and "
    "`longest` the worst of all rounds. routers.json has every run, and the range of each figure.",
    "The agent is a bare ASGI app under uvicorn, in two instances, and answers at once. Each router stands in front of two "
    "such processes; SwiftClaw's instances mount the same app, to which SwiftClaw adds its own server. `SwiftClaw's "
    "instance, called directly` is therefore the base of SwiftClaw's latency, and `the stub, called directly` that of the "
    "others.",
    "wrk calls only one of the two instances directly: the two `directly` rows are a base at 1 connection, and no limit at "
    "16 and 64.",
    "At the fixed rate, {rate} requests per second, each request is timed from the moment at which it was due. A chunk's "
    "delay is the time from the agent's `send` to the client. `last chunk` contains the agent's own {apart_ms:.0f} ms "
    "between its first and its last chunk.",
    "500 streams of 200 chunks a second are more than two stubs and a client do on a few cores, and each stream waits for "
    "CPU. The row of the direct call shows how much of that is not the router's.",
    "CPU and RSS are those of the router's own processes (nginx: master and workers; SwiftClaw: gateways and their "
    "children). RSS counts memory that processes share in each of them. CPU time per 1,000 is that at the rate which each "
    "router reached, so that what a router does without requests weighs more at a low rate.",
    "Failover: `kill -9` of one of the two instances at {rate} requests per second, each of which works for 50 ms, so that "
    "about half of those under way are in the killed one. These cannot be saved without risk: a router that fails them "
    "leaves the decision to the client, and one that sends them again runs a POST twice. `ran twice` counts requests that "
    "the agent began more than once. The killed stub is started again after 2 s; Ray starts SwiftClaw's.",
)
NOT_SHOWN = (
    "The agent does nothing. Beside a model call of a second, a difference of a millisecond between routers is noise; what "
    "remains is their CPU time, their memory, and what they do when an instance fails or is full.",
    "One machine: load, router and agents share its cores, so that a router that is cheap leaves more of them to the "
    "others. More cores raise the figures, most of all those of routers that use several threads. HAProxy and nginx have "
    "{threads} here, vllm-router and sglang-router as many as there are cores, a SwiftClaw gateway one.",
    "Equal settings are not equal work. SwiftClaw has retries, circuit breakers, health checks, limits, deadlines, metrics "
    "and the exchange between gateways on, as by default. The Rust routers have retries, circuit breakers, health checks "
    "and metrics on, as by default, and parse each request's JSON, as their other policies need it. HAProxy has TCP checks "
    "and redispatch, nginx its passive checks. No router writes an access log.",
    "SwiftClaw also needs Ray and its Controller, which the others do not have. They are not in the CPU and RSS above, but "
    "they run: {beside}. What starts and watches the agents of the other routers is not here either.",
    "Not measured: TLS, WebSockets, large bodies, slow clients, sessions, many instances, days of running.",
    "Settings beyond the defaults: round-robin; for SwiftClaw `maxConnectionsPerInstance: 1000` (with the default of 100, "
    "300 of the 500 streams would wait); for HAProxy `http-reuse always`, `option redispatch` and `check`; for nginx "
    "`proxy_buffering off`, HTTP/1.1 and kept connections to the agents; for the Rust routers the log level of warnings.",
)


def text(rate: int, threads: int, beside: str) -> str:

    values = {
        "rate": rate,
        "threads": "one thread each" if threads == 1 else f"{threads} threads each",
        "beside": beside,
        "apart_ms": 1000 * GAP_S * (CHUNKS - 1),
    }
    parts = [("How to read it", READING), ("What it does not show", NOT_SHOWN)]
    return "\n\n".join(f"{title}:\n\n" + "\n".join(_bullet(line.format(**values)) for line in lines) for title, lines in parts)


def _bullet(line: str) -> str:
    return textwrap.fill(line, 125, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
