"""The code of a version on a node: fetched once, complete or absent, and deleted when no process runs it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.desired.packages import Package, pack, unpack
from deployments.instance.code_cache import CodeCache, CodeUnavailable


def packed(folder: Path, text: str) -> Package:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shop.py").write_text(text)
    return pack(folder)


async def test_instances_that_start_together_all_find_the_code(tmp_path: Path) -> None:
    package, asked = packed(tmp_path / "source", "one"), []

    async def fetch(digest: str) -> bytes:
        asked.append(digest)
        await asyncio.sleep(0.01)
        return package.content

    folders = await asyncio.gather(*(CodeCache(package.digest, tmp_path / "node").ready(fetch) for _ in range(5)))
    assert {(Path(folder) / "shop.py").read_text() for folder in folders} == {"one"}
    asked.clear()
    again = CodeCache(package.digest, tmp_path / "node")
    assert await again.ready(fetch) == folders[0] and asked == [], "once per node"
    assert again.content() == package.content
    assert not list((tmp_path / "node").glob(".unpacking-*"))


@pytest.mark.parametrize(("answer", "said"), [(None, "deploy this version again"), (b"PK", "cannot be unpacked")])
async def test_unavailable_code_is_reported_in_a_sentence_and_leaves_no_folder(
    tmp_path: Path, answer: bytes | None, said: str
) -> None:
    async def fetch(digest: str) -> bytes | None:
        return answer

    code = CodeCache("0" * 32, tmp_path / "node")
    with pytest.raises(CodeUnavailable, match=said):
        await code.ready(fetch)
    assert not code.folder.exists()


HOLD = """
import sys
from pathlib import Path
from deployments.instance.code_cache import CodeCache
code = CodeCache(sys.argv[1], Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def process_that_runs(digest: str, root: Path) -> subprocess.Popen[str]:
    """A process that holds the package until its input ends."""
    command = [sys.executable, "-c", HOLD, digest, str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


async def test_a_package_is_deleted_when_another_version_starts_after_its_last_process_has_ended(tmp_path: Path) -> None:
    packages = {p.digest: p for p in (packed(tmp_path / "source", text) for text in ("one", "two", "three"))}
    first, second, third = packages
    root = tmp_path / "node"

    async def fetch(digest: str) -> bytes:
        return packages[digest].content

    def make_old() -> None:
        for lock in root.glob("*.lock"):
            os.utime(lock, (time.time() - 7200,) * 2)

    with process_that_runs(first, root) as process:
        unpack(packages[first], root / first)
        make_old()
        await CodeCache(second, root).ready(fetch)
        assert (root / first).is_dir(), "a process still runs it"
        process.communicate(timeout=20)
    make_old()
    await CodeCache(third, root).ready(fetch)
    assert [(root / digest).is_dir() for digest in packages] == [False, True, True]


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CodeUnavailable, match="writable by no other user"):
        CodeCache("0" * 32, shared)
