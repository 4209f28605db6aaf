"""The code of a version on this node: fetched once, unpacked, and deleted when no process runs it any more.

The package is fetched from the Controller once per node, unpacked in a temporary folder and renamed, so that instances that
start at the same moment find all of it or none. A process that runs it holds a shared lock until it ends; a package without a
lock is deleted when another version starts later. Not for a version that is not frozen: its code is the agent's own folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.desired.packages import DamagedPackage, Package, unpack

KEPT_S = 3600.0  # an unused package is kept this long: its instances may only be restarting
Fetch = Callable[[str], Awaitable[bytes | None]]


class CodeUnavailable(Exception):
    """The code of the version cannot be loaded; the text is the reason, for the operator."""


class CodeCache:
    """One package on this node, locked until the process ends. `root`: the folder of this user's packages."""

    def __init__(self, digest: str, root: Path | None = None) -> None:
        self._root = _private(root or Path(tempfile.gettempdir()) / f"swiftclaw-{os.getuid()}")
        self._digest = digest
        self.folder = self._root / digest
        self._zip = self._root / f"{digest}.zip"
        self._lock = os.open(self._root / f"{digest}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.utime(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    async def ready(self, fetch: Fetch) -> str:
        """The folder of the unpacked code, fetched if need be. Raises CodeUnavailable."""
        if not self.folder.is_dir():
            content = await fetch(self._digest)
            if content is None:
                raise CodeUnavailable(f"the Controller no longer has package {self._digest}: deploy this version again")
            try:
                await asyncio.to_thread(self._unpack, content)
            except (DamagedPackage, OSError) as error:
                raise CodeUnavailable(f"package {self._digest} cannot be unpacked: {error}") from error
        await asyncio.to_thread(_clean, self._root, self._digest)
        return str(self.folder)

    def content(self) -> bytes:
        """The package as it was fetched, for a Controller that has lost it. Raises OSError."""
        return self._zip.read_bytes()

    def _unpack(self, content: bytes) -> None:
        beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=self._root))
        try:
            unpack(Package(self._digest, content), beside / "code")
            (beside / "zip").write_bytes(content)
            (beside / "zip").replace(self._zip)
            with contextlib.suppress(OSError):  # another instance has renamed its copy first
                (beside / "code").rename(self.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _private(root: Path) -> Path:
    """The folder, made if need be, once it is sure that no other user can write code into it. Raises CodeUnavailable."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = root.lstat()
    if root.is_symlink() or stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise CodeUnavailable(f"{root} must belong to this user and be writable by no other user")
    return root


def _clean(root: Path, used: str) -> None:
    """Delete the packages that no process has used lately, except `used`."""
    for lock in root.glob("*.lock"):
        if lock.stem == used or time.time() - lock.stat().st_mtime < KEPT_S:
            continue
        with lock.open("r+") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(root / lock.stem, ignore_errors=True)
            (root / f"{lock.stem}.zip").unlink(missing_ok=True)
