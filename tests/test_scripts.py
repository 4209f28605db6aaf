"""What scripts/tools does about programs that are missing: with stand-ins for them, and for apt-get and npm."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
APT = """
echo "apt-get $*" >> log
[ "$1" = update ] && exit {update}
for program; do :; done
[ "{install}" = 0 ] || { echo "E: no $program"; exit 1; }
for name in $([ "$program" = prometheus ] && echo promtool || echo "$program"); do cp npm.stand-in bin/$name; done
"""
NPM = """#!/bin/sh
echo "npm $*" >> log
[ -e offline ] && exit 1
mkdir -p node_modules/axe-core && touch node_modules/axe-core/axe.min.js
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Nothing is installed but what a shell needs."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat", "cp", "mkdir", "sh", "tail", "touch"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    put(tmp_path, "npm.stand-in", NPM)
    be(tmp_path, 0)
    return tmp_path


def put(machine: Path, name: str, text: str) -> None:
    (machine / name).write_text(text)
    (machine / name).chmod(0o755)


def be(machine: Path, user: int) -> None:
    put(machine, "bin/id", f"#!/bin/sh\necho {user}\n")


def apt(machine: Path, *, install: int = 0, update: int = 0) -> None:
    put(machine, "bin/apt-get", "#!/bin/bash" + APT.replace("{install}", str(install)).replace("{update}", str(update)))


def tools(machine: Path) -> tuple[int, str, list[str]]:
    """Exit status, what was said, and what was installed this time."""
    (machine / "log").write_text("")
    command = ["bash", "-c", f"set -euo pipefail; source {ROOT}/scripts/tools"]
    done = subprocess.run(
        command, cwd=machine, env={"PATH": f"{machine}/bin"}, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr, (machine / "log").read_text().splitlines()


def test_root_gets_what_is_missing_once(machine: Path) -> None:
    apt(machine)
    status, _, ran = tools(machine)
    assert (status, [line.split()[-1] for line in ran]) == (0, ["chromium", "prometheus", "npm", "axe-core@4.14.1"])
    assert tools(machine) == (0, "", [])


def test_an_index_that_is_old_is_brought_up_to_date(machine: Path) -> None:
    apt(machine, install=1)
    status, said, ran = tools(machine)
    assert [line.split()[1] for line in ran] == ["install", "update", "install"]
    assert status == 1 and said.endswith("E: no chromium\nchromium is missing and apt-get cannot install chromium\n")


def test_who_may_not_install_is_told_what_is_missing(machine: Path) -> None:
    apt(machine)
    be(machine, 1000)
    status, said, ran = tools(machine)
    assert (status, ran) == (0, [])
    assert [line.split()[0] for line in said.splitlines()] == ["chromium", "promtool", "npm"]
    assert all(line.endswith("its tests are skipped") for line in said.splitlines())


def test_a_registry_that_does_not_answer_is_no_silent_skip(machine: Path) -> None:
    apt(machine)
    (machine / "offline").touch()
    status, said, _ = tools(machine)
    assert status == 1 and said.endswith("axe-core is missing and npm cannot install it\n")


def test_pre_commit_runs_the_programs_of_the_environment_that_the_lock_describes() -> None:
    """No hook has a version of its own, and `scripts/lint` and a commit are held to the same."""
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    locked = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert programs == {"ruff", "mypy", "pytest"}
    for program in programs:
        assert version(program) == locked[program], "the environment is not the lock's"
    linted = set(re.findall(r"\$venv/bin/(\w+)", (ROOT / "scripts/lint").read_text()))
    assert linted <= programs


def test_what_is_measured_is_left_out_of_the_tests_and_run_by_a_command_of_its_own() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "-m 'not measures'" in options["addopts"]
    assert "-m measures" in (ROOT / "scripts/measure").read_text()


def test_an_environment_of_another_tree_is_not_changed_through_a_link(tmp_path: Path) -> None:
    """It would be made anew, and cleared first."""
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / ".swiftclaw-installed").write_text(f"1 2 {other}")
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    for name in ("scripts/venv", "requirements.lock", "pyproject.toml"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    (tree / ".venv").symlink_to(other)
    done = subprocess.run(
        ["bash", "-c", f"source {tree}/scripts/venv"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "remove the link" in done.stderr
    assert (other / "bin").is_dir() and (other / ".swiftclaw-installed").exists()
