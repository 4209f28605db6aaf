"""The strategies of `policies/`, exactly as a gateway runs them: `slowness` of the instances is kept up to date from its
own answers (policies/load/slowness.py) with the gateway's defaults."""

from __future__ import annotations

from collections.abc import Sequence

from policies import STRATEGIES
from policies.base import Instance, Request, Strategy
from policies.load.slowness import Slowness
from simulation.gateway import Chooser, Site

MEASURED = frozenset({"response-time"})  # the others do not look at slowness


class Measuring:
    """Feeds a gateway's answers to `Slowness`, and writes the ratios to the instances before a pick."""

    def __init__(self, site: Site, strategy: Strategy) -> None:
        self._instances = site.instances
        self._strategy = strategy
        self._slowness = Slowness()
        self._next = 0.0

    def pick(self, instances: Sequence[Instance], request: Request) -> Instance | None:
        if request.now >= self._next:
            self._next = request.now + self._slowness.refresh_s
            ratios = self._slowness.all(request.now)
            for each in self._instances:
                each.slowness = ratios.get(each.id, 1.0)
        return self._strategy.pick(instances, request)

    def observe(self, now: float, instance: Instance, elapsed: float, ok: bool, level: float) -> None:
        changed = self._slowness.record(instance.id, level, elapsed, now, failed=not ok)
        if changed is not None:
            instance.slowness = changed


def strategy(name: str, site: Site) -> Chooser:
    chosen = STRATEGIES[name](site.rng)
    if name not in MEASURED:
        return Chooser(chosen)
    measuring = Measuring(site, chosen)
    return Chooser(measuring, measuring.observe)
