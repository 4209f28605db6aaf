"""Ignore rules mean what they mean to git: chosen cases, and random ones against git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cluster.desired.gitignore import IgnoreRules


@pytest.mark.parametrize(
    ("lines", "ignored", "kept"),
    [
        (["[a-c].py"], ["a.py", "x/c.py"], ["d.py", "ab.py"]),
        (["[!a-c].py"], ["d.py"], ["a.py"]),
        (["a[b"], [], ["ab", "a[b"]),
        ([r"\#notes", "#comment"], ["#notes"], ["#comment", "notes"]),
        ([r"\!important"], ["!important"], ["important"]),
        ([r"a\*"], ["a*"], ["ab"]),
        ([r"trailing\ "], ["trailing "], ["trailing"]),
        (["spaces   "], ["spaces"], ["spaces   "]),
        (["*.log", "!keep.log"], ["a.log"], ["keep.log"]),
        (["!keep.log", "*.log"], ["keep.log"], ["keep.txt"]),
        (["/*", "!/src"], ["a"], ["src", "src/a"]),
        (["*", "!*/", "!*.py"], ["a", "x/a"], ["a.py", "x/a.py"]),
        (["a/**"], ["a/b", "a/b/c"], ["a"]),
        (["**/a/b"], ["a/b", "x/y/a/b"], ["a"]),
        (["a/**/b"], ["a/b", "a/x/y/b"], ["b"]),
        (["a/*/b"], ["a/x/b"], ["a/b", "a/x/y/b"]),
    ],
)
def test_classes_escapes_and_negation(lines: list[str], ignored: list[str], kept: list[str]) -> None:
    rules = IgnoreRules().below("", lines)
    assert [path for path in (*ignored, *kept) if rules.ignore(path, is_folder=False)] == ignored


ATOMS = ("a", "b", "*", "**", "?", "[ab]", "[!a]", "[^b]", r"\*", "x.py", "*.py", "c d", r"\!a", "#a", r"\#a")
NAMES = ("a", "b", "x.py", "c d", "*", "!a", "#a")


def line(rng: Random) -> str:
    path = "/".join(rng.choice(ATOMS) for _ in range(rng.choice((1, 1, 2, 3))))
    return f"{rng.choice(('', '', '!'))}{rng.choice(('', '', '', '/'))}{path}{rng.choice(('', '', '/'))}"


def left(folder: Path, base: str, rules: IgnoreRules) -> Iterator[str]:
    for item in os.scandir(folder):
        path = f"{base}{item.name}"
        if item.name in (".git", ".gitignore") or rules.ignore(path, item.is_dir()):
            continue
        if item.is_dir():
            yield from left(Path(item.path), f"{path}/", rules)
        else:
            yield path


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git")
def test_random_rules_leave_the_files_that_git_leaves(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for outer in NAMES:
        for inner in NAMES:
            for file in ("a", "x.py") if inner in ("a", "b") else ("",):
                place = tmp_path / outer / inner / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("")
    rng = Random(5)
    for _ in range(120):
        lines = [line(rng) for _ in range(rng.choice((1, 2, 3)))]
        (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n")
        command = ["git", "-C", str(tmp_path), "ls-files", "-z", "--others", "--exclude-standard"]
        files = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        expected = {file for file in files if file not in ("", ".gitignore")}
        assert set(left(tmp_path, "", IgnoreRules().below("", lines))) == expected, lines
