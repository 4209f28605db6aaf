"""How much of its weight does a new instance have?

A share that grows with its age from a tenth to all within a window, relative to the oldest one: when all are equally
new, none is held back. For agents that are slow until caches are warm. Not needed with least-connections alone: a
new instance gets no burst there unless its requests end at once. Off unless configured (`loadBalancing.slowStart`).
Source: Envoy's slow start mode, linear.
"""

from __future__ import annotations

from collections.abc import Mapping

LEAST = 0.1


def warmth(age_s: float, window_s: float) -> float:
    """0.1 to 1.0."""
    return 1.0 if age_s >= window_s else max(LEAST, age_s / window_s)


def warm_weights(weights: Mapping[str, float], ages_s: Mapping[str, float], window_s: float) -> dict[str, float]:
    """The weights to route by; an instance of unknown age counts as old."""
    shares = {name: warmth(ages_s.get(name, window_s), window_s) for name in weights}
    warmest = max(shares.values(), default=1.0)
    return {name: weight * (shares[name] / warmest) for name, weight in weights.items()}
