"""Judges the record of a campaign by the rules of docs/reliability.md. It knows nothing but the record.

One file per family of rules; what lets a request fail is in excuses.py. The rules are narrow on purpose: an excuse names the
fault, the process and the time, and every slack is in `Tolerances`.
"""

from __future__ import annotations

from tests.campaign.checker.answers import check_answers
from tests.campaign.checker.commands import check_commands
from tests.campaign.checker.counts import check_counts
from tests.campaign.checker.executions import check_executions
from tests.campaign.checker.findings import Findings
from tests.campaign.checker.history import History
from tests.campaign.checker.processes import check_processes
from tests.campaign.checker.quiet import check_quiet
from tests.campaign.checker.sessions import check_sessions
from tests.campaign.checker.shown import check_shown
from tests.campaign.checker.sizes import check_sizes
from tests.campaign.checker.verdict import RULES, Tolerances, Verdict, Violation
from tests.campaign.record import Record

__all__ = ["RULES", "Tolerances", "Verdict", "Violation", "check", "judge"]

FAMILIES = (
    check_answers,
    check_executions,
    check_sessions,
    check_processes,
    check_shown,
    check_commands,
    check_counts,
    check_quiet,
    check_sizes,
)


def judge(record: Record, tolerances: Tolerances = Tolerances()) -> Verdict:  # noqa: B008 - frozen
    """All violations in the record, and how often which excuse held."""
    history = History(record, tolerances)
    findings = Findings(history)
    for family in FAMILIES:
        family(history, findings)
    findings.verdict.violations.sort(key=lambda one: one.at)
    return findings.verdict


def check(record: Record, tolerances: Tolerances = Tolerances()) -> list[Violation]:  # noqa: B008 - frozen
    """All violations in the record."""
    return judge(record, tolerances).violations
