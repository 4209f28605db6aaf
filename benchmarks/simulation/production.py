"""The strategies of `policies/`, exactly as a gateway runs them: `slowness` of the instances is kept up to date from its
own answers (policies/slowness.py), whatever the strategy makes of it.

The one difference is that ratios are recomputed every 2 s instead of every second: they are most of the simulation's time.
"""

from __future__ import annotations

from policies import STRATEGIES
from policies.base import Instance
from policies.slowness import Slowness
from simulation.gateway import Chooser, Site

WINDOW_S = 300.0  # the default of loadBalancing.window
REFRESH_S = 2.0
MEASURED = frozenset({"response-time"})  # the others do not look at slowness


class Measuring:
    """Feeds a gateway's answers to `Slowness` and writes the ratios to the instances."""

    def __init__(self, site: Site) -> None:
        self._instances = site.instances
        self._slowness = Slowness(WINDOW_S, REFRESH_S)
        self._next = 0.0

    def observe(self, now: float, instance: Instance, elapsed: float, ok: bool, level: int) -> None:
        self._slowness.record(instance.id, level, elapsed, now, failed=not ok)
        if now >= self._next:
            self._next = now + REFRESH_S
            ratios = self._slowness.all(now)
            for each in self._instances:
                each.slowness = ratios.get(each.id, 1.0)


def strategy(name: str, site: Site) -> Chooser:
    chosen = STRATEGIES[name](site.rng)
    return Chooser(chosen, Measuring(site).observe if name in MEASURED else None)
