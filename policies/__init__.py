"""Pure decisions: which instance, whether any, how many, which version.

`STRATEGIES` is the registry of `loadBalancing.strategy`: `STRATEGIES[name](rng, options)`. To add one: one file, one
line here, one test file (tests/policies/strategies/test_conformance.py holds every entry to the same rules).
"""

from __future__ import annotations

from collections.abc import Callable

from policies.base import Strategy
from policies.strategies.geographic import Geographic
from policies.strategies.least_connections import LeastConnections
from policies.strategies.response_time import ResponseTime
from policies.strategies.round_robin import RoundRobin

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "round-robin": RoundRobin,
    "least-connections": LeastConnections,
    "response-time": ResponseTime,
    "geographic": Geographic,
}
