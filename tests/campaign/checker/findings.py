"""Where the rules put what they find."""

from __future__ import annotations

from collections.abc import Iterable

from tests.campaign.checker.history import History
from tests.campaign.checker.verdict import RULES, Verdict, Violation
from tests.campaign.record import Request


class Findings:
    """Collects violations with the faults around them, and counts excuses."""

    def __init__(self, history: History) -> None:
        self._history, self.verdict = history, Verdict()

    def violation(self, rule: str, text: str, start: float = 0.0, end: float = 0.0, *, processes: Iterable[int] = ()) -> None:
        """A rule that was broken between these moments; 0: at no particular one."""
        assert rule in RULES, rule
        at = self._history.after_start(start) if start else 0.0
        faults = self._history.around(start, max(start, end)) if start else ()
        self.verdict.violations.append(Violation(rule, text, at, faults, processes=tuple(processes)))

    def request(self, rule: str, request: Request, text: str, *, processes: Iterable[int] = ()) -> None:
        """A rule that was broken for this request."""
        assert rule in RULES, rule
        history, pids = self._history, dict.fromkeys([*processes, *([request.pid] if request.pid else [])])
        self.verdict.violations.append(
            Violation(
                rule,
                f"{request.id} ({request.kind}{', repeatable' if request.repeatable else ''}) {text}",
                history.after_start(request.began),
                history.around(request.began, request.ended),
                (request.id,),
                tuple(pids),
                saw(request),
            )
        )

    def excuse(self, why: str) -> None:
        self.verdict.excused[why] += 1


def saw(request: Request) -> str:
    """What its client saw, in words."""
    words = [request.outcome, request.error, str(request.status or ""), "midway" if request.midway else ""]
    took = f"after {request.ended - request.began:.2f} s"
    place = f"from {request.instance or 'an instance'} ({request.pid})" if request.pid else ""
    return " ".join(filter(None, [*words, took, place])) + (f": {request.message[:200]}" if request.message else "")
