"""The seeded defects apply to the tree as it is, and the table says which of them the campaign finds."""

from __future__ import annotations

import ast
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.campaign.bite import Result, copy_tree, main, read_table, table
from tests.campaign.checker import RULES
from tests.campaign.defects import DEFECTS, Defect, find

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_applies_to_the_tree_and_compiles(defect: Defect, tmp_path: Path) -> None:
    (tmp_path / defect.file).parent.mkdir(parents=True)
    shutil.copy(ROOT / defect.file, tmp_path / defect.file)
    defect.apply(tmp_path)
    changed = (tmp_path / defect.file).read_text("utf-8")
    assert changed != (ROOT / defect.file).read_text("utf-8")
    ast.parse(changed)


def test_a_patch_that_no_longer_fits_fails_loudly(tmp_path: Path) -> None:
    defect = replace(DEFECTS[0], file="module.py", old="count = 1\n")
    for text in ("count = 2\n", "count = 1\ncount = 1\n"):
        (tmp_path / "module.py").write_text(text)
        with pytest.raises(ValueError, match=r"times in module\.py, not once"):
            defect.apply(tmp_path)


def test_there_are_at_least_twelve_with_names_of_their_own_and_rules_that_exist() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 12
    assert {rule for defect in DEFECTS for rule in defect.rules} <= set(RULES)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no defect 'typo'"):
        find("typo")
    with pytest.raises(ValueError, match="there is no defect 'typo'"):
        main(["typo"])


def test_the_table_says_what_was_found_by_which_rule_and_what_was_not(tmp_path: Path) -> None:
    first, second, third = DEFECTS[:3]
    results = [
        Result(first.name, 1, {first.rules[0]: 2}, 120.0),
        Result(second.name, 3, {}, 360.0),
    ]
    text = table(results, "2026-01-01, 2 CPUs")
    assert f"| {first.name} | {first.what} | `{first.rules[0]}` (2) | 1 |" in text
    assert f"| {second.name} | {second.what} | NOT FOUND (no violation) |  |" in text
    assert f"| {third.name} | {third.what} | not tried yet | |" in text
    assert "1 of the 2 that were tried are found" in text
    (tmp_path / "table.md").write_text(text)
    assert read_table(tmp_path / "table.md") == results


def test_a_violation_of_another_rule_is_not_that_the_defect_was_found() -> None:
    assert not Result("counts-lost", 1, {"in-time": 3}, 60.0).found


def test_the_copy_of_a_tree_has_what_git_has(tmp_path: Path) -> None:
    copy_tree(ROOT, tmp_path / "copy")
    assert (tmp_path / "copy/tests/campaign/defects.py").read_text() == (ROOT / "tests/campaign/defects.py").read_text()
    assert not (tmp_path / "copy/.git").exists()
