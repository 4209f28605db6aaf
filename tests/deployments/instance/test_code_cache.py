"""The code of a version on a node: fetched once, whole or not there, and deleted when nobody runs it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from cluster.desired.packages import Package, pack
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
async def test_code_that_cannot_be_had_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, answer: bytes | None, said: str
) -> None:
    async def fetch(digest: str) -> bytes | None:
        return answer

    code = CodeCache("0" * 32, tmp_path / "node")
    with pytest.raises(CodeUnavailable, match=said):
        await code.ready(fetch)
    assert not code.folder.exists()


async def test_what_nobody_runs_is_deleted_when_another_version_starts_later(tmp_path: Path) -> None:
    packages = {p.digest: p for p in (packed(tmp_path / "source", text) for text in ("one", "two", "three"))}

    async def fetch(digest: str) -> bytes:
        return packages[digest].content

    codes = [CodeCache(digest, tmp_path / "node") for digest in packages]
    for code in codes[:2]:
        await code.ready(fetch)
    old = time.time() - 7200
    for lock in (tmp_path / "node").glob("*.lock"):
        os.utime(lock, (old, old))
    codes[0].release()
    await codes[2].ready(fetch)
    assert [code.folder.is_dir() for code in codes] == [False, True, True]


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CodeUnavailable, match="nobody else can write to"):
        CodeCache("0" * 32, shared)
