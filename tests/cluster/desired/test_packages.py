"""A folder becomes a package that is named by its content."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cluster.desired.gitignore import IgnoreRules
from cluster.desired.packages import WAITING_S, CannotPack, DamagedPackage, Package, Packages, files_of, pack, unpack


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.path for entry in files_of(folder))


def test_what_is_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    folder = tree(tmp_path / "a", {"shop.py": "x = 1", "data/words.txt": "ü", "run.sh": "#!/bin/sh"})
    (folder / "run.sh").chmod(0o755)
    unpack(pack(folder), tmp_path / "b")
    assert names(tmp_path / "b") == ["data/words.txt", "run.sh", "shop.py"]
    assert (tmp_path / "b/data/words.txt").read_text() == "ü"
    assert os.access(tmp_path / "b/run.sh", os.X_OK) and not os.access(tmp_path / "b/shop.py", os.X_OK)


def test_equal_content_has_an_equal_name_whenever_and_wherever_it_is_packed(tmp_path: Path) -> None:
    files = {"shop.py": "x = 1", "lib/a.py": ""}
    one, other = tree(tmp_path / "one", files), tree(tmp_path / "other", dict(reversed(files.items())))
    os.utime(one / "shop.py", (1, 1))
    assert pack(one) == pack(other)
    assert pack(tree(one, {"shop.py": "x = 2"})).digest != pack(other).digest
    (other / "lib/a.py").rename(other / "lib/b.py")
    assert pack(other).digest != pack(tree(one, {"shop.py": "x = 1"})).digest


def test_settings_caches_environments_and_what_ray_writes_are_no_part_of_the_code(tmp_path: Path) -> None:
    folder = tree(
        tmp_path,
        {
            "shop.py": "", ".git/HEAD": "", ".venv/x": "", "__pycache__/shop.pyc": "", "lib/__pycache__/a.pyc": "",
            ".swiftclaw/state.json": "", "env/pyvenv.cfg": "", "env/lib/x.py": "", "ray/session_1/log": "",
            "cluster.yaml": "applications: [{import_path: deployments.app:build}]",
            "prices.yaml": "apple: 1", "other/cluster.yaml": "import_path: deployments.app:build",
        },
    )  # fmt: skip
    (folder / "ray/session_latest").symlink_to(folder / "ray/session_1")
    assert names(folder) == ["other/cluster.yaml", "prices.yaml", "shop.py"]
    assert [entry.path for entry in files_of(folder, skip=[folder / "other"])] == ["prices.yaml", "shop.py"]


def test_ignore_files_hold_below_their_folder_and_the_second_kind_has_the_last_word(tmp_path: Path) -> None:
    folder = tree(
        tmp_path,
        {
            ".gitignore": "*.log\n/build/\nsecret.*\n", ".swiftclawignore": "!secret.txt\nbig/\n",
            "a.log": "", "lib/a.log": "", "build/x": "", "lib/build/x": "", "secret.txt": "", "secret.key": "", "big/x": "",
            "lib/.gitignore": "here.txt\n", "lib/here.txt": "", "here.txt": "",
        },
    )  # fmt: skip
    kept = [name for name in names(folder) if not name.endswith("ignore")]
    assert kept == ["here.txt", "lib/build/x", "secret.txt"]


@pytest.mark.parametrize(
    ("line", "ignored", "kept"),
    [
        ("*.py", ["a.py", "b/c.py"], ["a.pyx", "py"]),
        ("/a", ["a"], ["b/a"]),
        ("a/b", ["a/b"], ["x/a/b", "a/c/b"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["b", "x/a/b"]),
        ("**/b", ["b", "a/b", "a/x/b"], ["bb"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("[a-c].txt", ["b.txt"], ["d.txt"]),
        ("[!a].txt", ["b.txt"], ["a.txt"]),
        ("\\#a", ["#a"], ["a"]),
        ("a\\*", ["a*"], ["ab"]),
        ("# a", [], ["# a", "a"]),
        ("a   ", ["a"], []),
        ("[", [], ["a"]),
        ("", [], ["a"]),
    ],
)
def test_rules_mean_what_they_mean_to_git(line: str, ignored: list[str], kept: list[str]) -> None:
    rules = IgnoreRules().below("", [line])
    assert [path for path in [*ignored, *kept] if rules.ignore(path, False)] == ignored


def test_the_last_rule_that_matches_decides_and_a_slash_means_a_folder() -> None:
    rules = IgnoreRules().below("", ["*", "!a/"])
    assert rules.ignore("a", False) and not rules.ignore("a", True)


def test_a_folder_that_is_too_large_is_refused_with_its_largest_entries(tmp_path: Path) -> None:
    sizes = {"models/large.bin": 3000, "models/small.bin": 500, "shop.py": 100, "a/b/c": 900}
    folder = tree(tmp_path, {name: "x" * size for name, size in sizes.items()})
    with pytest.raises(CannotPack) as refused:
        pack(folder, most_bytes=4000)
    said = str(refused.value)
    assert "4.4 KiB, more than the limit of 3.9 KiB" in said
    assert "(largest: models/ 3.4 KiB, a/b/ 0.9 KiB, shop.py 0.1 KiB)" in said
    assert ".swiftclawignore" in said


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotPack, match="no such folder"):
        pack(tmp_path / "nowhere")


def test_links_that_go_round_end(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"a/x.py": ""})
    (folder / "a/back").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")
    assert names(folder) == ["a/x.py"]


def test_content_that_is_not_that_of_the_name_is_not_unpacked(tmp_path: Path) -> None:
    made = pack(tree(tmp_path / "a", {"shop.py": "x = 1"}))
    other = pack(tree(tmp_path / "b", {"shop.py": "x = 2"}))
    for wrong in (Package(made.digest, other.content), Package(made.digest, made.content[:-30]), Package(made.digest, b"")):
        with pytest.raises(DamagedPackage):
            unpack(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_stays_for_as_long_as_it_is_wanted(tmp_path: Path) -> None:
    now = [0.0]
    store = Packages(tmp_path / "packages", lambda: now[0])
    made = pack(tree(tmp_path / "a", {"shop.py": "x = 1"}))
    assert store.get(made.digest) is None and not store.has(made.digest)
    store.put(made)
    assert store.get(made.digest) == made.content
    store.drop_all_but([])
    assert store.has(made.digest), "it has just come: its version may be about to be deployed"
    now[0] = WAITING_S + 1
    store.drop_all_but([made.digest])
    assert store.has(made.digest)
    store.put(made)
    store.drop_all_but([])
    assert store.has(made.digest), "it was uploaded again"
    now[0] += WAITING_S + 1
    store.drop_all_but([])
    assert not store.has(made.digest)


def test_the_clock_of_the_disk_has_no_say_in_how_long_a_package_stays(tmp_path: Path) -> None:
    now = [0.0]
    made, path = pack(tree(tmp_path / "a", {"shop.py": "x = 1"})), tmp_path / "packages"
    Packages(path).put(made)
    for modified in (time.time() - 7200, time.time() + 7200):
        store = Packages(path, lambda: now[0])  # of the next Controller
        os.utime(path / f"{made.digest}.zip", (modified, modified))
        store.drop_all_but([])
        assert store.has(made.digest), "this Controller has only just seen it"
    now[0] = WAITING_S + 1
    store.drop_all_but([])
    assert not store.has(made.digest)


@pytest.mark.parametrize("name", ["../key", "", "x" * 32, "../../etc/passwd"])
def test_a_name_that_is_none_reaches_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "key.zip").write_text("secret")
    store = Packages(tmp_path / "packages")
    assert store.get(name) is None and not store.has(name)
    with pytest.raises(DamagedPackage):
        store.put(Package(name, b""))
