"""Is an instance well, after what its checks said so far?

The first pass ever makes it well; then only `unhealthy_threshold` failures in a row take it out, and only
`healthy_threshold` passes in a row bring it back, so that one lost check moves no traffic. Not for failures of real
requests, which are the breaker's.
Source: HAProxy's rise and fall, Envoy's health checking (first check decides).
"""

from __future__ import annotations


class HealthThreshold:
    """`well` is None until the first pass, or until the failures of a newcomer reach the threshold."""

    def __init__(self, well: bool | None = None) -> None:
        self.well = well
        self._against = 0  # answers in a row that speak against `well`

    def __repr__(self) -> str:
        word = {None: "not yet known", True: "well", False: "ill"}[self.well]
        return f"<HealthThreshold: {word}, {self._against} against>"

    def record(self, passed: bool, unhealthy_threshold: int, healthy_threshold: int) -> bool:
        """One answer; True when it changed the verdict."""
        if passed == self.well:
            self._against = 0
            return False
        self._against += 1
        needed = healthy_threshold if passed else unhealthy_threshold
        if passed and self.well is None:
            needed = 1
        if self._against < needed:
            return False
        self.well, self._against = passed, 0
        return True
