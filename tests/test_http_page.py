"""Every demand of an RFC that docs/http.md lists has a test that exists, or the reason why it does not concern a gateway."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/http.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)
    if re.match(r"\| \d", line)
]
TESTS = {
    name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text("utf-8"))
}


def test_the_three_tables_are_read() -> None:
    assert len(ROWS) >= 90
    assert {len(row) for row in ROWS} == {4}


def test_every_test_that_the_page_names_exists() -> None:
    named = {name for row in ROWS for name in re.findall(r"`(test_\w+)`", row[3])}
    assert len(named) >= 50
    assert named - TESTS == set()


def test_a_demand_without_a_test_says_why() -> None:
    assert [row for row in ROWS if not row[3] and not row[2].startswith("not applicable: ")] == []
    assert [row for row in ROWS if row[3] and not re.fullmatch(r"(`test_\w+`(, )?)+", row[3])] == []
