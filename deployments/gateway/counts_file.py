"""A gateway's undelivered counts, where they survive a kill of its process.

A file in memory (tmpfs where there is one), mapped: what was written stays, whatever the process was doing. The tallies count
directly in it, which costs next to nothing and cannot overflow: one row per instance, not per request. There are ROWS rows; a
tally without one counts in its process only. The file does not survive the node. A running gateway holds a lock on its file;
one without a lock is orphaned, and any gateway of the node delivers it (gateway/gateway.py). Batches are numbered, so that the
Controller counts each once, however often it is sent (cluster/telemetry/totals.py).
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from cluster.messages import InstanceCounts, Observation
from cluster.telemetry.tally import CELLS, CODES, Key, Tally, counts_of, merge
from deployments.gateway.node_files import create, locked, place

log = logging.getLogger("swiftclaw.gateway")

ROWS = 512
SUFFIX = ".counts"

# In words of 8 bytes. A row: the length of its label (0: free), the label, codes, and two sides of cells.
_LAYOUT = 1_000_003 * ROWS + 1_009 * CELLS + CODES  # identifies the layout: a file of another version is not read
_TEXT = 32
_HEADER = 4 + _TEXT  # layout, current batch, last delivered batch, length of the gateway's name, its name
_CODES = 1 + _TEXT
_SIDES = _CODES + CODES
_ROW = _SIDES + 2 * CELLS
_WORDS = _HEADER + ROWS * _ROW


class CountsFile:
    """One gateway's file. `batch`: the number of the current one; the one before it may not be delivered yet."""

    def __init__(self, folder: Path, gateway: str) -> None:
        self.path = folder / f"{quote(gateway, safe='')}{SUFFIX}"
        self.lock = create(self.path, bytes(8 * _WORDS))
        self._words = _mapped(self.lock)
        self._free = list(reversed(range(ROWS)))
        self._rows: dict[Tally, int] = {}
        self.batch = 1
        _write(self._words, 3, gateway)
        self._words[1] = self.batch
        self._words[0] = _LAYOUT  # makes the file readable

    def attach(self, key: Key, tally: Tally) -> bool:
        """Make a new tally count in the file. Returns False when it has no row there."""
        if tally in self._rows:
            return True
        label = json.dumps(key)
        if not self._free or len(label.encode()) > 8 * _TEXT:
            return False
        row = self._rows[tally] = self._free.pop()
        at = _HEADER + row * _ROW
        self._words[at + _CODES : at + _ROW] = _ZEROS
        codes, sides = self._words[at + _CODES : at + _SIDES], _sides(self._words, at)
        tally.move(codes, sides[self.batch % 2], sides[(self.batch + 1) % 2])
        _write(self._words, at, label)
        return True

    def detach(self, tally: Tally) -> None:
        """Free the row of a tally that is delivered and no longer counts."""
        row = self._rows.pop(tally, None)
        if row is not None:
            self._words[_HEADER + row * _ROW] = 0
            self._free.append(row)

    def turn(self) -> None:
        """Start the next batch, after all tallies were taken."""
        self.batch += 1
        self._words[1] = self.batch
        os.utime(self.lock)  # not every system does that for mapped memory

    def acknowledge(self, batch: int) -> None:
        """The Controller has received the batch."""
        self._words[2] = batch

    def remove(self) -> None:
        """Delete the file, after everything was delivered."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # other gateways' files are there
            self.path.parent.rmdir()


class OrphanedCounts:
    """The file of a gateway whose process has ended, locked so that no other gateway reads it."""

    def __init__(self, path: Path, words: memoryview[int]) -> None:
        self._path, self._words = path, words

    def observations(self) -> list[Observation]:
        """The batches that the Controller may not have yet, oldest first."""
        words = self._words
        if words[0] != _LAYOUT or not 1 <= words[1] - words[2] <= 2:
            return []
        gateway = _read(words, 3)
        return [_observation(words, gateway, batch) for batch in range(words[2] + 1, words[1] + 1)]

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def open_counts_file(cluster: str, gateway: str) -> CountsFile | None:
    """This gateway's file; None where none can be made: counting goes on without."""
    try:
        return CountsFile(place(cluster), gateway)
    except OSError as error:
        log.warning("no counts file, so up to a second of counts is lost if this gateway is killed: %s", error)
        return None


@contextmanager
def held(path: Path) -> Iterator[OrphanedCounts | None]:
    """Lock an orphaned file. None while its gateway runs, or another gateway reads it."""
    with locked(path) as file:
        content = None if file is None else os.pread(file, 8 * _WORDS, 0)
        yield None if content is None else OrphanedCounts(path, memoryview(content.ljust(8 * _WORDS, b"\0")).cast("q"))


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
    return Observation(gateway, instances, refusals, batch=batch, orphaned=True)


def _sides(words: memoryview[int], at: int) -> tuple[memoryview[int], memoryview[int]]:
    first = at + _SIDES
    return words[first : first + CELLS], words[first + CELLS : first + 2 * CELLS]


def _write(words: memoryview[int], at: int, text: str) -> None:
    """The length is written last: a kill before that leaves no text."""
    content = text.encode()[: 8 * _TEXT]
    words[at] = 0
    words[at + 1 : at + 1 + _TEXT] = memoryview(content.ljust(8 * _TEXT, b"\0")).cast("q")
    words[at] = len(content)


def _read(words: memoryview[int], at: int) -> str:
    return words[at + 1 : at + 1 + _TEXT].tobytes()[: words[at]].decode()


_ZEROS = memoryview(bytes(8 * (_ROW - _CODES))).cast("q")


def _mapped(file: int) -> memoryview[int]:
    return memoryview(mmap.mmap(file, 8 * _WORDS)).cast("q")
