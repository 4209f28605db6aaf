"""By rule: how a sound record is broken, and what comes close to that and is allowed."""

from __future__ import annotations

from tests.campaign.checker_cases import answers, counts, executions, operators, processes, quiet, sessions
from tests.campaign.checker_cases.registry import BROKEN, NEAR_MISSES, Change

FAMILIES = (answers, executions, sessions, processes, operators, counts, quiet)  # each registers its own when it is imported

__all__ = ["BROKEN", "FAMILIES", "NEAR_MISSES", "Change"]
