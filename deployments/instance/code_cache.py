"""Where on this node is the code of a version?

The package is fetched from the Controller once per node, unpacked beside where it will be and renamed, so that instances
that start at the same moment find all of it or none. Whoever runs it holds a lock for as long as its process lives; what
nobody holds is deleted when another version starts later. Not for a version that is not frozen: that is its folder.
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

KEPT_S = 3600.0  # what nobody runs stays this long: its instances may only be starting again
Fetch = Callable[[str], Awaitable[bytes | None]]


class CodeUnavailable(Exception):
    """The code cannot be had; the text says why in a sentence."""


class CodeCache:
    """One package on this node, held until the process ends. `root`: where this user's packages are."""

    def __init__(self, digest: str, root: Path | None = None) -> None:
        self._root = _own(root or Path(tempfile.gettempdir()) / f"swiftclaw-{os.getuid()}")
        self._digest = digest
        self.folder = self._root / digest
        self._zip = self._root / f"{digest}.zip"
        self._lock = os.open(self._root / f"{digest}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.utime(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    async def ready(self, fetch: Fetch) -> str:
        """The folder, with all of the code in it. Raises CodeUnavailable."""
        if not self.folder.is_dir():
            content = await fetch(self._digest)
            if content is None:
                raise CodeUnavailable(f"the Controller has no package {self._digest} any more: deploy this version again")
            try:
                await asyncio.to_thread(self._unpack, content)
            except (DamagedPackage, OSError) as error:
                raise CodeUnavailable(f"the version's code cannot be unpacked: {error}") from error
        await asyncio.to_thread(_clean, self._root, self._digest)
        return str(self.folder)

    def content(self) -> bytes:
        """The package itself, for a Controller that has lost it. Raises OSError."""
        return self._zip.read_bytes()

    def release(self) -> None:
        os.close(self._lock)

    def _unpack(self, content: bytes) -> None:
        beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=self._root))
        try:
            unpack(Package(self._digest, content), beside / "code")
            (beside / "zip").write_bytes(content)
            (beside / "zip").replace(self._zip)
            with contextlib.suppress(OSError):  # another instance was quicker
                (beside / "code").rename(self.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _own(root: Path) -> Path:
    """A folder that nobody else can put code into. Raises CodeUnavailable."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = root.lstat()
    if root.is_symlink() or known.st_uid != os.getuid() or known.st_mode & 0o022:
        raise CodeUnavailable(f"{root} must be a folder of this user's that nobody else can write to")
    return root


def _clean(root: Path, used: str) -> None:
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
