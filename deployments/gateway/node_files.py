"""The files of a node's gateways that survive a kill of their process, in memory where the system has that (tmpfs).

A running gateway holds a lock on its files; one without a lock is orphaned, and another gateway may take it over. They do not
survive the node. Used by counts_file.py and homes_file.py.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

OLD_S = 3600.0  # after this long the files of other clusters are deleted


def place(cluster: str) -> Path:
    """The folder of the cluster's gateways on this node, readable by this user only. Raises OSError."""
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    root = _private(base / f"swiftclaw-{os.getuid()}-counts")
    for other in root.iterdir():
        if other.name != cluster:
            _tidy(other)
    return _private(root / quote(cluster, safe=""))


def create(path: Path, content: bytes = b"") -> int:
    """Create a locked file, or replace one, whole at once; returns its open descriptor. Raises OSError."""
    file, temporary = tempfile.mkstemp(dir=path.parent, prefix="new-")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        with os.fdopen(os.dup(file), "wb") as writing:
            writing.write(content)
        Path(temporary).rename(path)
    except OSError:
        Path(temporary).unlink()
        os.close(file)
        raise
    return file


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """The descriptor of an orphaned file, locked. None while its gateway runs, or another gateway reads it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield file if _lock(file) else None
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(file).st_nlink > 0  # else another gateway has just deleted it


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder that belongs to this user and that no other user can read")
    return folder


def _tidy(other: Path) -> None:
    """Delete what another cluster left behind an hour ago or more: nobody will take it over."""
    for path in sorted(other.glob("*")):
        with suppress(OSError), locked(path) as orphan:
            if orphan is not None and time.time() - path.stat().st_mtime > OLD_S:
                path.unlink()
    with suppress(OSError):
        other.rmdir()
