"""May a request that failed be sent again, and when?

If it had provably not begun, always (the caller decides: connection refused, reset before a byte was sent, a "not
executed" refusal, draining). Otherwise only where the method or an Idempotency-Key makes repeating harmless, and never
after the first byte of a response. A budget keeps retries from multiplying an overload: at most a percentage of the
active requests at any time, but always a few. A "not executed" refusal costs no budget: it cost the instance nothing.
Source: Envoy, retry budgets and its back-off (25 ms, full jitter); RFC 9110 on idempotent methods.
"""

from __future__ import annotations

from random import Random

REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
BACKOFF_S = (0.025, 0.075, 0.175, 0.250)


def allowed(active: int, retrying: int, budget_percent: float, minimum: int = 3) -> bool:
    """Whether one more may retry while `retrying` of the `active` requests do."""
    return retrying + 1 <= max(minimum, active * budget_percent / 100)


def backoff_s(attempt: int, rng: Random) -> float:
    """How long to wait before retry number `attempt` (1, 2, ...): anything below its ceiling."""
    return rng.random() * BACKOFF_S[min(max(attempt, 1), len(BACKOFF_S)) - 1]


def repeatable(method: str, has_idempotency_key: bool) -> bool:
    """Whether doing it twice does no more than doing it once. Methods are case-sensitive, as in HTTP."""
    return has_idempotency_key or method in REPEATABLE


class Budget:
    """Counts the active requests and how many of them retry. Its settings may be changed at any time."""

    __slots__ = ("active", "budget_percent", "minimum", "retrying")

    def __init__(self, budget_percent: float, minimum: int = 3) -> None:
        self.budget_percent = budget_percent
        self.minimum = minimum
        self.active = 0
        self.retrying = 0

    def __repr__(self) -> str:
        return f"<Budget {self.retrying} of {self.active} retry, {self.budget_percent:g} % or {self.minimum} may>"

    def begin(self) -> Spending:
        """One request more; `end` what this returns in every way the request can end."""
        return Spending(self)


class Spending:
    """One request's part of a budget."""

    __slots__ = ("_budget", "_ended", "_retries")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._retries = self._ended = False
        budget.active += 1

    def retry(self) -> bool:
        """Whether this request may retry; call it before each retry. A request that retries already may continue."""
        budget = self._budget
        if self._retries:
            return True
        if self._ended or not allowed(budget.active, budget.retrying, budget.budget_percent, budget.minimum):
            return False
        self._retries = True
        budget.retrying += 1
        return True

    def answered(self) -> None:
        """The retry has its response: the stream that follows no longer counts as a retry."""
        if self._retries:
            self._retries = False
            self._budget.retrying -= 1

    def end(self) -> None:
        """May be called twice."""
        self.answered()
        if not self._ended:
            self._ended = True
            self._budget.active -= 1
