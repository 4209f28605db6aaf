"""Pure judgement: which instance, whether at all, how many, which version.

`STRATEGIES` is the registry of `loadBalancing.strategy`. To add one: one file, one line here, one test file
(tests/policies/test_conformance.py holds every entry to the same rules).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from policies.base import Strategy
from policies.round_robin import RoundRobin

STRATEGIES: dict[str, Callable[[Random], Strategy]] = {
    "round-robin": RoundRobin,
}
