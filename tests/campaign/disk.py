"""A disk of its own for the state folder, which can be full, read-only, immutable, or slow, and is itself again afterwards.

ext4 in a file where a loop device can be mounted: only that can be frozen (fsfreeze), so that writes hang as on a disk that
does not answer. Else a tmpfs, else the plain folder. Each state is a context manager; `why_not` names what the machine lacks.
A script of its own freezes and thaws: it does so even if the campaign is killed meanwhile, as nothing can kill what waits
for a frozen disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE_MB = 300
PIECES = (1 << 20, 1 << 12)  # bytes that the ballast grows by: the last one leaves no room for a page
FULL, READ_ONLY, IMMUTABLE, FROZEN = "full", "read-only", "immutable", "frozen"
FREEZE = """
trap "" PIPE
exec 3>&1
for _ in $(seq "$4"); do
  mountpoint -q "$1" || exit  # never the disk of the machine
  fsfreeze --freeze "$1" && echo frozen >&3
  sleep "$2"
  fsfreeze --unfreeze "$1"
  sleep "$3"
done
"""


class Disk:
    """`folder` must be empty. `kind`: ext4, tmpfs, or "": a plain folder."""

    def __init__(self, folder: Path, size_mb: int = SIZE_MB) -> None:
        self.folder = folder
        self._image = folder.with_name(f"{folder.name}.img")
        self._script: subprocess.Popen[bytes] | None = None  # that freezes and thaws
        self.kind = "ext4" if self._mount_image(size_mb) else "tmpfs" if self._mount_memory(size_mb) else ""

    def _mount_image(self, size_mb: int) -> bool:
        if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("mount", "mkfs.ext4", "fsfreeze", "mountpoint")):
            return False
        with self._image.open("wb") as file:
            file.truncate(size_mb << 20)
        made = _done("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1", str(self._image))
        if made and _done("mount", "-o", "loop,noatime", str(self._image), str(self.folder)):
            with contextlib.suppress(OSError):
                (self.folder / "lost+found").rmdir()
            return True
        self._image.unlink()
        return False

    def _mount_memory(self, size_mb: int) -> bool:
        return os.geteuid() == 0 and _done("mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "campaign", str(self.folder))

    def why_not(self, state: str) -> str:
        """Why the disk cannot be brought into this state here; "": it can."""
        if state == FROZEN:
            return "" if self.kind == "ext4" else "only ext4 on a loop device can be frozen; it needs root, mkfs.ext4, fsfreeze"
        if state == IMMUTABLE:
            return "" if os.geteuid() == 0 and shutil.which("chattr") else "needs root and chattr"
        return "" if self.kind else "needs root, to mount a disk of its own"

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        ballast = self.folder / "ballast"
        try:
            with ballast.open("wb") as file:
                for piece in PIECES:
                    _fill(file.fileno(), piece)
            yield
        finally:
            ballast.unlink(missing_ok=True)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """A read-only view of the folder over itself: the disk could not become read-only while files on it are open."""
        _do("mount", "--bind", str(self.folder), str(self.folder))
        try:
            _do("mount", "-o", "remount,bind,ro", str(self.folder))
            yield
        finally:
            _do("umount", "-l", str(self.folder))

    @contextlib.contextmanager
    def immutable(self) -> Iterator[None]:
        """Nothing can be created, renamed or deleted in it, not even by root; open files can be written."""
        _do("chattr", "+i", str(self.folder))
        try:
            yield
        finally:
            _do("chattr", "-i", str(self.folder))

    def freeze(
        self, over: threading.Event, begun: Callable[[], None], frozen_s: float, thawed_s: float = 0.0, times: int = 1
    ) -> None:
        """Every write waits for `frozen_s`; then none does for `thawed_s`; so many times, or until `over`.

        Calls `begun` when it is frozen for the first time. Raises OSError when it could not be frozen.
        """
        if self.kind != "ext4":
            raise OSError(f"{self.folder} is not on a disk of its own that can be frozen")
        words = ["sh", "-c", FREEZE, "freeze", str(self.folder), f"{frozen_s:.3f}", f"{thawed_s:.3f}", str(times)]
        script = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        self._script = script
        try:
            assert script.stdout is not None
            with script.stdout:
                if not script.stdout.readline():
                    raise OSError(f"fsfreeze --freeze {self.folder} failed")
            begun()
            while script.poll() is None and not over.wait(0.05):
                pass
        finally:
            self._thaw()

    def _thaw(self) -> None:
        """End the script, and thaw what it has frozen."""
        script, self._script = self._script, None
        if script is None:
            return
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()
        _done("fsfreeze", "--unfreeze", str(self.folder))  # fails if it is not frozen

    def close(self) -> None:
        """Unmount it; the folder is empty again."""
        self._thaw()
        if self.kind:
            _done("umount", str(self.folder)) or _done("umount", "-l", str(self.folder))
        self.kind = ""
        self._image.unlink(missing_ok=True)


def _fill(file: int, piece: int) -> None:
    size = os.fstat(file).st_size
    try:
        while True:
            os.posix_fallocate(file, size, piece)
            size += piece
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _done(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _do(*words: str) -> None:
    """Raises OSError with what the command said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
