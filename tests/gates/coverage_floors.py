"""Fails a run whose coverage is below a package's floor (option --coverage-floors, used by scripts/test with --cov).

The floors stand in pyproject.toml and only rise: who covers more raises them. Lines and branches count alike; 100 % means every
branch. What Ray's processes run is not measured, so the floors speak of the tests that need no cluster.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOM_TO_RISE = 2.0  # points above the floor from which on the floor is asked to rise


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--coverage-floors", action="store_true", help="fail below the floors in pyproject.toml; needs --cov")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--coverage-floors") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(CoverageFloors(config.rootpath), "coverage-floors")


@dataclass(frozen=True)
class Covered:
    package: str
    percent: float
    floor: float

    @property
    def is_enough(self) -> bool:
        return self.percent >= self.floor

    def __str__(self) -> str:
        """One line for the end of a run."""
        line = f"coverage of {self.package}: {self.percent:.1f} %, floor {self.floor:g} %"
        if not self.is_enough:
            return f"{line}: TOO LOW; add tests (`--cov-report=term-missing` lists what no test ran)"
        if self.percent >= self.floor + ROOM_TO_RISE:
            return f"{line}: raise the floor in pyproject.toml"
        return line


def floors(pyproject: Path) -> dict[str, float]:
    found: dict[str, float] = tomllib.loads(pyproject.read_text("utf-8"))["tool"]["swiftclaw"]["coverage-floors"]
    return found


def judged(root: Path, floor_of: Mapping[str, float]) -> list[Covered]:
    """What the data that pytest-cov left in `root` says of each package."""
    data = coverage.Coverage(data_file=root / ".coverage", config_file=str(root / "pyproject.toml"))
    data.load()
    return [
        Covered(package, data.report(include=[f"{root}/{package}/*"], file=io.StringIO()), floor)
        for package, floor in floor_of.items()
    ]


class CoverageFloors:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._covered: list[Covered] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        self._covered = judged(self._root, floors(self._root / "pyproject.toml"))
        if not all(covered.is_enough for covered in self._covered):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for covered in self._covered:
            terminalreporter.write_line(str(covered), red=not covered.is_enough)
