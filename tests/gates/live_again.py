"""Runs a live test that failed once more, alone, when all other tests are done (option --live-again, used by scripts/test).

A test that then passes is printed as flaky, by name and with its first failure, and counted beside the passed ones: noise on
the machine costs no run, and stays visible. Only tests marked `cluster` get a second run; any other test that fails has
failed. A test that fails twice has failed, and the exit status says so. More than AT_MOST failures are no noise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

AT_MOST = 10
MARKER = "cluster"
FAILED = ("failed", "error")  # an error is a failure of a fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--live-again", action="store_true", help="run live tests that fail once more, alone, at the end")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--live-again") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(LiveAgain(config), "live-again")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In the process that runs the test: only it knows the markers, and the report carries them to the one that counts."""
    report = yield
    vars(report)["live"] = item.get_closest_marker(MARKER) is not None  # pytest-xdist sends what a report has
    return report


class LiveAgain:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._notes: list[str] = []
        self._flaky: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)  # pytest-xdist has ended its workers by then: the second run is alone
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        failed = self._failed_live_tests()
        if exitstatus != pytest.ExitCode.TESTS_FAILED or not failed:
            return
        if len(failed) > AT_MOST:
            self._notes.append(f"{len(failed)} live tests failed: that is no noise, so they are not run again")
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

    def _failed_live_tests(self) -> list[str]:
        reports = [report for kind in FAILED for report in self._reporter.stats.get(kind, [])]
        return list(dict.fromkeys(report.nodeid for report in reports if getattr(report, "live", False)))

    def _run_again(self, tests: Sequence[str]) -> set[str]:
        """Those that fail again."""
        self._notes.append(f"ran {len(tests)} live tests again, alone: {', '.join(tests)}")
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
