"""Is an instance healthy, by its health checks so far?

The first pass makes it healthy; then only `unhealthy_threshold` failures in a row make it unhealthy, and only
`healthy_threshold` passes in a row healthy again, so that one lost check moves no traffic. Not for failures of real
requests: that is the breaker's.
Source: HAProxy's rise and fall, Envoy's health checking (first check decides).
"""

from __future__ import annotations


class HealthThreshold:
    """`healthy` is None until the first pass, or until the failures of a new instance reach the threshold."""

    def __init__(self, healthy: bool | None = None) -> None:
        self.healthy = healthy
        self._against = 0  # results in a row that contradict `healthy`

    def __repr__(self) -> str:
        word = {None: "unknown", True: "healthy", False: "unhealthy"}[self.healthy]
        return f"<HealthThreshold: {word}, {self._against} against>"

    def record(self, passed: bool, unhealthy_threshold: int, healthy_threshold: int) -> bool:
        """Record the result of a check; True when it changed `healthy`."""
        if passed == self.healthy:
            self._against = 0
            return False
        self._against += 1
        needed = healthy_threshold if passed else unhealthy_threshold
        if passed and self.healthy is None:
            needed = 1
        if self._against < needed:
            return False
        self.healthy, self._against = passed, 0
        return True
