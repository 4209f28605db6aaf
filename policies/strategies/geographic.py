"""geographic: which instance is nearest to the client?

The nearest region that has an instance (policies/regions/distance.py; equally near ones by priority), and the least busy
instance in it. How much of a half-healthy or full region's traffic goes on to the next one is decided before, by
policies/spillover.py over regions in the order of distance. Use it when the network path to the client is a good part of
the response time. Not for turns of many seconds, where a free instance far away answers sooner than a busy one here.
Source: Envoy's locality-aware balancing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from policies.base import Instance, Options, Request
from policies.candidates import Candidates
from policies.strategies.least_connections import LeastConnections


class Geographic:
    __slots__ = ("_distances", "_inside", "_regions")

    def __init__(self, rng: Random, options: Options | None = None) -> None:
        options = options or Options()
        self._distances = options.distances
        self._regions = frozenset(options.regions)
        self._inside = LeastConnections(rng)

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        regions = regions_of(instances)
        allowed = regions & self._regions if self._regions else regions
        if len(allowed) <= 1 and allowed == regions:
            return self._inside.pick(instances, request)
        for place in self._distances.order(request.region, priorities(instances, allowed)):
            members = [instance for instance in instances if instance.region in place]
            chosen = self._inside.pick(members, request)
            if chosen is not None:
                return chosen
        return None


def regions_of(instances: Sequence[Instance]) -> frozenset[str]:
    """The regions that they are in; of many, also those in which none may be used now."""
    if isinstance(instances, Candidates):
        return instances.group.regions
    return frozenset(instance.region for instance in instances)


def priorities(instances: Iterable[Instance], regions: Iterable[str]) -> dict[str, int]:
    """The priority of each of `regions`: its first instance's, the lowest number where they differ."""
    lowest: dict[str, int] = {}
    wanted = frozenset(regions)
    for instance in instances:
        region = instance.region
        if region in wanted and instance.priority < lowest.get(region, instance.priority + 1):
            lowest[region] = instance.priority
    return lowest
