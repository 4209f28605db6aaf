"""least-connections: which instance has the fewest requests in flight?

The lowest (load + 1) / weight, load being the requests in flight at the instance as best known here. The default for
agents: it needs no history and suits turns of any length. Not where instances differ in speed and no weights are
set (response-time measures that), and not with one instance that fails at once and no breaker: idle for ever, it
would draw most requests. With weights an idle fleet sends to the heaviest first: they mean speed, not shares.
Source: shortest queue / shortest expected delay; NGINX least_conn.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from policies.base import Instance, Options, Request
from policies.strategies.cheapest import cheapest


class LeastConnections:
    __slots__ = ("_rng",)

    def __init__(self, rng: Random, options: Options | None = None) -> None:
        self._rng = rng

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        return cheapest(instances, cost, self._rng)


def cost(instance: Instance) -> float:
    return (instance.load + 1) / instance.weight
