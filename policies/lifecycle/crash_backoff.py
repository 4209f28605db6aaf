"""How long does a crashed process wait before its replacement starts?

Not at all after its first crash. From the second crash in a row on, the delay doubles up to a maximum. A process that ran
for `stable_s` ends the row, so that an occasional crash of a stable agent costs no time. For crashes alone: a process that
was stopped or drained, and one that is merely unhealthy, have nothing to wait for.
Source: Kubernetes' CrashLoopBackOff, with a shorter first delay (KEP-4603).
"""

from __future__ import annotations

from dataclasses import dataclass

DOUBLINGS = 30  # more would change nothing: the maximum is reached long before


@dataclass(frozen=True)
class CrashBackoff:
    """Delays in seconds. A process that ran at least `stable_s` has not crashed at its start."""

    first_s: float = 5.0
    longest_s: float = 300.0
    stable_s: float = 60.0

    def count(self, crashes: int, ran_s: float) -> int:
        """Crashes in a row, when a process with `crashes` before it has crashed after `ran_s`."""
        return 0 if ran_s >= self.stable_s else crashes + 1

    def delay_s(self, crashes: int) -> float:
        """The delay before the next start, after that many crashes in a row."""
        if crashes <= 1:
            return 0.0
        return min(self.longest_s, self.first_s * 2.0 ** min(crashes - 2, DOUBLINGS))
