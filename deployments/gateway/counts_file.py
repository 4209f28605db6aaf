"""What a gateway has counted and not yet told, where it outlives the gateway's process.

A file in memory (tmpfs where there is one), mapped: what was written to it stays when the process is killed in the middle of
anything. The tallies count right there, so that it costs next to nothing and cannot overflow: it has a row per instance, not
per request. Rows for ROWS tallies; one without a row counts in its process only, and a kill loses what it had not told. It
does not outlive the node. A living gateway holds a lock on its file; one that is not held was left behind, and any gateway of
the node tells what is in it (deployments/gateway/gateway.py). Batches are numbered, so that the Controller counts each once,
however often it is told (cluster/telemetry/totals.py).
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import CELLS, CODES, Key, Tally, counts_of, merge

ROWS = 512
SUFFIX = ".counts"
OLD_S = 3600.0  # what other clusters have left behind is deleted then

# In words of 8 bytes. A row: the length of its label (0: free), the label, codes, and two sides of cells.
_LAYOUT = 1_000_003 * ROWS + 1_009 * CELLS + CODES  # another version's file is not read
_TEXT = 32
_HEADER = 4 + _TEXT  # layout, batch that fills, batch that was told, length of the gateway's name, its name
_CODES = 1 + _TEXT
_SIDES = _CODES + CODES
_ROW = _SIDES + 2 * CELLS
_WORDS = _HEADER + ROWS * _ROW


class CountsFile:
    """One gateway's file. `batch`: the number of the one that fills now; the one before it may be under way."""

    def __init__(self, folder: Path, gateway: str) -> None:
        self.path = folder / f"{quote(gateway, safe='')}{SUFFIX}"
        self.lock = _create(self.path)
        self._words = _mapped(self.lock)
        self._free = list(reversed(range(ROWS)))
        self._rows: dict[Tally, int] = {}
        self.batch = 1
        _write(self._words, 3, gateway)
        self._words[1] = self.batch
        self._words[0] = _LAYOUT  # from now on it can be read

    def attach(self, key: Key, tally: Tally) -> bool:
        """Let it count here. It has counted nothing yet."""
        if tally in self._rows:
            return True
        label = json.dumps(key)
        if not self._free or len(label.encode()) > 8 * _TEXT:
            return False
        row = self._rows[tally] = self._free.pop()
        at = _HEADER + row * _ROW
        self._words[at + _CODES : at + _ROW] = _NOTHING
        codes, sides = self._words[at + _CODES : at + _SIDES], _sides(self._words, at)
        tally.move(codes, sides[self.batch % 2], sides[(self.batch + 1) % 2])
        _write(self._words, at, label)
        return True

    def detach(self, tally: Tally) -> None:
        """It counts no more, and what it had was told."""
        row = self._rows.pop(tally, None)
        if row is not None:
            self._words[_HEADER + row * _ROW] = 0
            self._free.append(row)

    def turn(self) -> None:
        """All tallies were taken: they fill the next batch now."""
        self.batch += 1
        self._words[1] = self.batch
        os.utime(self.lock)  # writing to mapped memory does not do that everywhere

    def acknowledge(self, batch: int) -> None:
        """The Controller has received the batch."""
        self._words[2] = batch

    def remove(self) -> None:
        """Everything was told."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # others are there
            self.path.parent.rmdir()


class OrphanedCounts:
    """The file of a gateway whose process is gone, held so that no other reads it."""

    def __init__(self, path: Path, words: memoryview[int]) -> None:
        self._path, self._words = path, words

    def observations(self) -> list[Observation]:
        """What the Controller may not have yet, the oldest first."""
        words = self._words
        if words[0] != _LAYOUT or not 1 <= words[1] - words[2] <= 2:
            return []
        gateway = _read(words, 3)
        return [_observation(words, gateway, batch) for batch in range(words[2] + 1, words[1] + 1)]

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def place(cluster: str) -> Path:
    """The folder for gateways of that cluster on this node; only this user can read it. Raises OSError."""
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    root = _private(base / f"swiftclaw-{os.getuid()}-counts")
    for other in root.iterdir():
        if other.name != cluster:
            _tidy(other)
    return _private(root / quote(cluster, safe=""))


@contextmanager
def held(path: Path) -> Iterator[OrphanedCounts | None]:
    """None while its gateway lives, or another one reads it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield _left_behind(path, file)
    finally:
        os.close(file)


def _left_behind(path: Path, file: int) -> OrphanedCounts | None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    if not os.fstat(file).st_nlink:  # another was quicker
        return None
    content = os.pread(file, 8 * _WORDS, 0)
    return OrphanedCounts(path, memoryview(content.ljust(8 * _WORDS, b"\0")).cast("q"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _observation(words: memoryview[int], gateway: str, batch: int) -> Observation:
    instances: dict[Key, InstanceCounts] = {}
    refusals: dict[tuple[str, int], int] = {}
    for at in range(_HEADER, _WORDS, _ROW):
        if not words[at]:
            continue
        agent, _, _, instance = key = tuple(json.loads(_read(words, at)))
        counts = counts_of(words[at + _CODES : at + _SIDES].tolist(), _sides(words, at)[batch % 2])
        if instance:
            instances[key] = merge(instances.get(key, InstanceCounts()), counts)
        else:
            refusals.update({(agent, code): count for code, count in counts.codes.items()})
    return Observation(gateway, instances, refusals, batch=batch)


def _sides(words: memoryview[int], at: int) -> tuple[memoryview[int], memoryview[int]]:
    first = at + _SIDES
    return words[first : first + CELLS], words[first + CELLS : first + 2 * CELLS]


def _write(words: memoryview[int], at: int, text: str) -> None:
    """The length last: whoever is killed meanwhile has written nothing."""
    content = text.encode()[: 8 * _TEXT]
    words[at] = 0
    words[at + 1 : at + 1 + _TEXT] = memoryview(content.ljust(8 * _TEXT, b"\0")).cast("q")
    words[at] = len(content)


def _read(words: memoryview[int], at: int) -> str:
    return words[at + 1 : at + 1 + _TEXT].tobytes()[: words[at]].decode()


_NOTHING = memoryview(bytes(8 * (_ROW - _CODES))).cast("q")


def _create(path: Path) -> int:
    """A file of zeros that has all its room already, and a lock on it. Raises OSError."""
    file, beside = tempfile.mkstemp(dir=path.parent, prefix="new-")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        with os.fdopen(os.dup(file), "wb") as writing:
            writing.write(bytes(8 * _WORDS))
        Path(beside).rename(path)
    except OSError:
        Path(beside).unlink()
        os.close(file)
        raise
    return file


def _mapped(file: int) -> memoryview[int]:
    return memoryview(mmap.mmap(file, 8 * _WORDS)).cast("q")


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    known = folder.lstat()
    if folder.is_symlink() or known.st_uid != os.getuid() or known.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user's that nobody else can read")
    return folder


def _tidy(other: Path) -> None:
    """The folder of another cluster: what it has left for an hour nobody will ever tell."""
    for path in files(other):
        with suppress(OSError), held(path) as left:
            if left is not None and time.time() - path.stat().st_mtime > OLD_S:
                left.remove()
    with suppress(OSError):
        other.rmdir()
