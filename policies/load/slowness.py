"""How slow is an instance, compared with the others under the same load?

Slowness is the median, over an instance's responses within the window, of its time divided by the fleet's median time at
the same number of requests in flight on arrival. A prior worth 20 answers draws it towards 1 (geometric mean),
0.8 to 1.25 counts as 1, and it stays within 0.1 to 10. A failed answer counts as ten times the median however long it
took, and each failure in a row doubles the slowness at once, until a success: so failing fast never looks fast, whether
turns take a second or minutes. No answers means 1, never 0, or a newcomer would be flooded. Give times to first byte for
streams. Not a forecast of one request's time: only the ratio between instances means anything.
Source: comparing at equal load is Prequal's (NSDI 2024); the median and the prior are for heavy-tailed agent turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import pow

PRIOR_ANSWERS = 20
SAME = (0.8, 1.25)
LOWEST, HIGHEST = 0.1, 10.0
FAILED = HIGHEST  # the ratio that a failed answer counts as
PER_FAILURE, ENOUGH = 2.0, 4  # a factor for each in a row; this many reach HIGHEST from 1
KEPT_EACH = 512  # newest answers per instance
KEPT_ALL = 8192  # and in all; a large fleet keeps fewer of each
KEPT_LEAST = 16
SHORTEST_S = 1e-6  # a clock that stands still must not divide by zero

Answer = tuple[float, int, float, bool]  # when, in-flight level, seconds, failed


class Slowness:
    """Answers go in one by one (about a microsecond each); ratios come out at most once per `refresh_s`."""

    def __init__(self, window_s: float = 300.0, refresh_s: float = 1.0) -> None:
        self.window_s = window_s
        self.refresh_s = refresh_s
        self._answers: dict[str, deque[Answer]] = {}
        self._failing: dict[str, int] = {}  # failures in a row, for those whose last answer failed
        self._lasting: dict[str, float] = {}  # slowness without the failures in a row
        self._ratios: dict[str, float] = {}
        self._fresh_until = float("-inf")

    def __repr__(self) -> str:
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self._ratios.items())
        return f"<Slowness over {self.window_s:g} s: {ratios or 'no responses'}>"

    def record(self, instance: str, in_flight: float, seconds: float, now: float, failed: bool = False) -> float | None:
        """One answer. `in_flight`: at the instance when the request arrived there, itself not counted.

        Returns the instance's slowness if it changed at once: by a failure, or by the success after one.
        """
        answers = self._answers.get(instance)
        if answers is None:
            answers = self._answers[instance] = deque()
        answers.append((now, level_of(round(in_flight)), seconds if seconds > SHORTEST_S else SHORTEST_S, failed))
        most = min(KEPT_EACH, max(KEPT_LEAST, KEPT_ALL // len(self._answers)))
        while len(answers) > most:
            answers.popleft()
        if failed:
            self._failing[instance] = self._failing.get(instance, 0) + 1
        elif self._failing.pop(instance, 0) == 0:
            return None
        ratio = self._ratios[instance] = self._with_failures(instance)
        return ratio

    def all(self, now: float) -> Mapping[str, float]:
        """Slowness of every instance with answers in the window; recomputed only when `refresh_s` has passed."""
        if now >= self._fresh_until:
            self._fresh_until = now + self.refresh_s
            self._drop_before(now - self.window_s)
            medians = self._fleet_medians()
            self._lasting = {name: _slowness(answers, medians) for name, answers in self._answers.items()}
            self._ratios = {name: self._with_failures(name) for name in self._lasting}
        return self._ratios

    def forget(self, instance: str) -> None:
        """It was removed, or a new process has taken its name."""
        for by_instance in (self._answers, self._failing, self._lasting, self._ratios):
            by_instance.pop(instance, None)

    def _with_failures(self, instance: str) -> float:
        lasting = self._lasting.get(instance, 1.0)
        failures = self._failing.get(instance, 0)
        if not failures:
            return lasting
        return min(HIGHEST, max(1.0, lasting) * pow(PER_FAILURE, min(failures, ENOUGH)))

    def _drop_before(self, oldest: float) -> None:
        for name, answers in list(self._answers.items()):
            while answers and answers[0][0] < oldest:
                answers.popleft()
            if not answers:
                del self._answers[name]
                self._failing.pop(name, None)

    def _fleet_medians(self) -> dict[int, float]:
        by_level: dict[int, list[float]] = {}
        for answers in self._answers.values():
            for _, level, seconds, failed in answers:
                if not failed:
                    by_level.setdefault(level, []).append(seconds)
        return {level: _median(times) for level, times in by_level.items()}


def level_of(in_flight: int) -> int:
    """0, 1, 2, 3, then half-octaves: 4-5, 6-7, 8-11, 12-15, 16-23 ..."""
    if in_flight < 4:
        return max(in_flight, 0)
    octave = in_flight.bit_length() - 1
    return 2 * octave + ((in_flight >> (octave - 1)) & 1)


def _slowness(answers: deque[Answer], medians: Mapping[int, float]) -> float:
    count = len(answers)
    ratio = _median([FAILED if failed else seconds / medians[level] for _, level, seconds, failed in answers])
    ratio = pow(ratio, count / (count + PRIOR_ANSWERS))
    if SAME[0] <= ratio <= SAME[1]:
        return 1.0
    return min(HIGHEST, max(LOWEST, ratio))


def _median(values: list[float]) -> float:
    values.sort()
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
