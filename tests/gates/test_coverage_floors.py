"""The floors of coverage: what is too low, what may rise, and what the figures are made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gates.coverage_floors import Covered, floors, judged

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("percent", "is_enough", "advice"), [(89.9, False, "TOO LOW"), (90.0, True, "90 %"), (93.0, True, "raise the floor")]
)
def test_a_package_below_its_floor_is_not_enough_and_one_well_above_raises_it(
    percent: float, is_enough: bool, advice: str
) -> None:
    covered = Covered("cluster", percent, 90)
    assert covered.is_enough is is_enough
    assert advice in str(covered)


def test_a_branch_that_no_test_took_counts(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.coverage.run]\nbranch = true\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/taken.py").write_text("for number in (1, 2):\n    if number > 1:\n        print(number)\n")
    (tmp_path / "package/untaken.py").write_text("if len('a') == 1:\n    print(1)\n")
    (tmp_path / "main.py").write_text("import package.taken, package.untaken\n")
    subprocess.run([sys.executable, "-m", "coverage", "run", "main.py"], cwd=tmp_path, check=True, timeout=60)
    (covered,) = judged(tmp_path, {"package": 100})
    assert covered.percent == pytest.approx(100 * 10 / 11) and not covered.is_enough


def test_every_package_has_a_floor_and_policies_is_covered_whole() -> None:
    found = floors(ROOT / "pyproject.toml")
    assert set(found) == {"policies", "cluster", "deployments", "swiftclaw"}
    assert found["policies"] == 100
