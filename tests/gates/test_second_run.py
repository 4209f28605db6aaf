"""A second run for tests that failed: tried on small suites of its own, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.gates.second_run import AT_MOST

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest
from pathlib import Path

def runs(name):
    with Path("log").open("a") as log:
        print(name, file=log)
    return Path("log").read_text().split().count(name)

@pytest.fixture
def shaky():
    assert runs("fixture") > 1, "the first time"

def test_good():
    runs("good")
"""
FLAKY = """
def test_flaky():
    assert runs("flaky") > 1, "the first time"
"""
BROKEN = """
def test_broken():
    assert runs("broken") > 2, "the first and the second time"
"""
POLICY = """
from pathlib import Path

def test_policy():
    log = Path("log")
    with log.open("a") as file:
        print("policy", file=file)
    assert log.read_text().split().count("policy") > 1, "the first time"
"""
FIXTURE = """
def test_fixture(shaky):
    pass
"""


def run(folder: Path, *tests: str, policy: str = "", options: tuple[str, ...] = ()) -> tuple[int, str, list[str]]:
    """Exit status, output, and the names of the tests in the order in which they ran."""
    (folder / "test_it.py").write_text(SUITE + "".join(tests))
    (folder / "tests/policies").mkdir(parents=True)
    (folder / "tests/policies/test_pure.py").write_text(policy)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.gates.second_run", "--second-run", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, (folder / "log").read_text().split()


def last_line(output: str) -> str:
    return output.splitlines()[-1].split(" in ")[0]


def test_a_test_that_passes_alone_is_flaky_by_name_and_the_run_passes(tmp_path: Path) -> None:
    status, output, log = run(tmp_path, FLAKY, FIXTURE)
    assert (status, last_line(output)) == (0, "3 passed, 2 flaky")
    assert "FLAKY test_it.py::test_flaky (call)" in output and "FLAKY test_it.py::test_fixture (setup)" in output
    assert output.count("AssertionError: the first time") == 2
    assert log == ["good", "flaky", "fixture", "flaky", "fixture"]  # again at the end, and nothing else


def test_a_test_that_fails_twice_fails_the_run_and_a_policys_has_no_second_try(tmp_path: Path) -> None:
    status, output, log = run(tmp_path, FLAKY, BROKEN, policy=POLICY, options=("-p", "xdist.plugin", "-n", "2"))
    assert (status, last_line(output)) == (1, "2 failed, 2 passed, 1 flaky")
    assert Counter(log) == {"good": 1, "flaky": 2, "broken": 2, "policy": 1}
    assert set(log[4:]) == {"flaky", "broken"}
    assert "| " in output and "the first and the second time" in output


def test_a_flaky_test_excuses_no_other(tmp_path: Path) -> None:
    status, output, log = run(tmp_path, FLAKY, policy=POLICY)
    assert (status, last_line(output), log.count("policy")) == (1, "1 failed, 2 passed, 1 flaky", 1)


def test_many_failures_are_no_noise(tmp_path: Path) -> None:
    many = f"""
@pytest.mark.parametrize("number", range({AT_MOST + 1}))
def test_all(number):
    assert runs("all") > 99
"""
    status, output, log = run(tmp_path, many)
    assert (status, last_line(output)) == (1, f"{AT_MOST + 1} failed, 1 passed")
    assert log.count("all") == AT_MOST + 1 and f"{AT_MOST + 1} tests failed" in output


def test_every_live_test_is_marked() -> None:
    files = sorted((ROOT / "tests/integration").glob("test_*.py"))
    assert files and [file.name for file in files if "pytest.mark.cluster" not in file.read_text("utf-8")] == []
