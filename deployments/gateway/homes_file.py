"""A gateway's session homes, where they survive a kill of its process: for the gateway that starts and finds no other one.

While another gateway runs, it knows all homes (session_exchange.py). This file (node_files.py) is for the rest: each new or
moved home is appended before the client has its answer, as a line of JSON; the file is rewritten when most of its lines are
out of date. A starting gateway reads what ended gateways of its node left. What it reads merges like a peer's message, so an
old line does no harm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deployments.gateway.node_files import create, locked, place

log = logging.getLogger("swiftclaw.gateway")

SUFFIX = ".homes"
SLACK = 10_000  # lines that may be out of date, beside as many as there are homes

_SHAPES = {(*[str] * 5, int, placed, used) for placed in (int, float) for used in (int, float)}
Row = Sequence[Any]  # agent, session, instance, replica, version, moves, placed_at, used_at
# placed_at: seconds since the epoch; used_at: monotonic seconds, which all processes of the node share and nobody sets


class HomesFile:
    """One gateway's file."""

    def __init__(self, folder: Path, gateway: str) -> None:
        self.path = folder / f"{quote(gateway, safe='')}{SUFFIX}"
        self._file = create(self.path)
        self._lines = 0
        self._meanwhile: list[bytes] | None = None  # what is appended while the file is rewritten
        self._rewriting: asyncio.Task[None] | None = None

    def append(self, rows: Sequence[Row]) -> None:
        """Add homes. A full disk ends the file, not the gateway."""
        if not rows or self._file < 0:
            return
        content = _content(rows)
        self._lines += len(rows)
        if self._meanwhile is not None:
            self._meanwhile.append(content)
        try:
            _write(self._file, content)
        except OSError as error:
            self._end(error)

    def is_due(self, homes: int) -> bool:
        """Whether most of its lines are out of date, `homes` being the number that is known."""
        return self._file >= 0 and self._meanwhile is None and self._lines > 2 * homes + SLACK

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Start to replace the content by `rows` and what is appended from now on; the loop is not blocked."""
        if self._file >= 0 and self._meanwhile is None:
            self._meanwhile, self._lines = [], len(rows)
            self._rewriting = asyncio.create_task(self._rewrite(rows))

    async def rewritten(self) -> None:
        """Return when no rewriting is under way."""
        if self._rewriting is not None:
            await self._rewriting

    async def _rewrite(self, rows: Sequence[Row]) -> None:
        assert self._meanwhile is not None
        try:
            file = await asyncio.to_thread(lambda: create(self.path, _content(rows)))
            if self._file < 0:  # the disk became full meanwhile
                os.close(file)
                return
            before, self._file = self._file, file
            os.close(before)
            _write(self._file, b"".join(self._meanwhile))
        except OSError as error:
            self._end(error)
        finally:
            self._meanwhile = None

    def remove(self) -> None:
        """Delete the file of a gateway that stops: others know its homes, or the cluster ends."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # other gateways' files are there
            self.path.parent.rmdir()

    def orphans(self) -> Iterator[tuple[Path, list[Row]]]:
        """The files of gateways that have ended, locked while their rows are used."""
        for path in sorted(self.path.parent.glob(f"*{SUFFIX}")):
            if path == self.path:
                continue
            with locked(path) as file:
                if file is not None:
                    yield path, list(_rows(file))

    def _end(self, error: OSError) -> None:
        log.warning("no more homes file, so sessions move if the last gateway is killed: %s", error)
        os.close(self._file)
        self._file = -1


def open_homes_file(cluster: str, gateway: str) -> HomesFile | None:
    """This gateway's file; None where none can be made."""
    try:
        return HomesFile(place(cluster), gateway)
    except OSError as error:
        log.warning("no homes file, so sessions move if the last gateway is killed: %s", error)
        return None


def _content(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _rows(file: int) -> Iterator[Row]:
    """Its lines; the last one may be cut off by the kill."""
    with os.fdopen(os.dup(file), "rb") as lines:
        for line in lines:
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, list) and tuple(map(type, row)) in _SHAPES:
                    yield row
