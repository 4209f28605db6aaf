"""Runs a test that failed once more, alone, when all other tests are done (option --second-run, used by scripts/test).

A test that then passes is printed as flaky, by name and with its first failure, and counted beside the passed ones: noise on
the machine costs no run, and stays visible. The tests of the policies, which know neither sockets nor clocks, get no second
run. A test that fails twice has failed, and the exit status says so. More than AT_MOST failures are no noise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

AT_MOST = 10
DETERMINISTIC = Path("tests/policies")
FAILED = ("failed", "error")  # an error is a failure of a fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--second-run", action="store_true", help="run tests that fail once more, alone, at the end")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--second-run") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SecondRun(config), "second-run")


class SecondRun:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._notes: list[str] = []
        self._flaky: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)  # pytest-xdist has ended its workers by then: the second run is alone
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        failed = self._failed_tests()
        if exitstatus != pytest.ExitCode.TESTS_FAILED or not failed:
            return
        if len(failed) > AT_MOST:
            self._notes.append(f"{len(failed)} tests failed: that is no noise, so they are not run again")
            return
        self._count(set(failed) - self._run_again(failed))
        if not any(self._reporter.stats.get(kind) for kind in FAILED):
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for note in self._notes:
            terminalreporter.write_line(note)
        if self._flaky:
            terminalreporter.section("flaky: failed once, passed when run again alone")
            for report in self._flaky:
                terminalreporter.write_line(f"FLAKY {report.nodeid} ({report.when})", bold=True)
                report.toterminal(terminalreporter._tw)

    @property
    def _reporter(self) -> pytest.TerminalReporter:
        reporter: pytest.TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        return reporter

    def _failed_tests(self) -> list[str]:
        reports = [report for kind in FAILED for report in self._reporter.stats.get(kind, [])]
        return list(dict.fromkeys(report.nodeid for report in reports if not Path(report.nodeid).is_relative_to(DETERMINISTIC)))

    def _run_again(self, tests: Sequence[str]) -> set[str]:
        """Those that fail again."""
        self._notes.append(f"ran {len(tests)} tests again, alone: {', '.join(tests)}")
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cov", "-o", f"cache_dir={cache}", *tests]
            done = subprocess.run(
                command, cwd=self._config.rootpath, capture_output=True, text=True, errors="replace", check=False
            )
            record = Path(cache, "v/cache/lastfailed")
            again = set(json.loads(record.read_text())) if record.exists() else set()
        if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            again = set(tests)
        if again:  # with a margin: only this run's own last line looks like a last line
            self._notes.extend(f"| {line}" for line in (done.stdout + done.stderr).splitlines())
        return again

    def _count(self, flaky: set[str]) -> None:
        stats = self._reporter.stats
        for kind in FAILED:
            reports = stats.pop(kind, [])
            self._flaky += [report for report in reports if report.nodeid in flaky]
            if kept := [report for report in reports if report.nodeid not in flaky]:
                stats[kind] = kept
        passed = {report.nodeid for report in stats.get("passed", [])}
        firsts = list({report.nodeid: report for report in reversed(self._flaky)}.values())
        stats.setdefault("passed", []).extend(report for report in firsts if report.nodeid not in passed)
        if firsts:
            stats["flaky"] = firsts
