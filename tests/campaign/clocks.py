"""Steps of the wall clock of a cluster's Python processes; the machine's own clock is left alone (shim/sitecustomize.py)."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from pathlib import Path

SHIM = Path(__file__).with_name("shim")
EVERYONE = "all"  # the file with the offset that a process begins with


class Clocks:
    """`folder`: has a file per process with its offset. A process takes part if it is started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(EVERYONE, 0.0)

    def environment(self, environment: dict[str, str]) -> dict[str, str]:
        path = environment.get("PYTHONPATH")
        return {**environment, "PYTHONPATH": f"{SHIM}:{path}" if path else str(SHIM), "CAMPAIGN_CLOCKS": str(self._folder)}

    def put_ahead(self, seconds: float, pids: Iterable[int] | None = None) -> int:
        """Put the clocks of these processes, or of all and of those that start later, so far ahead of the machine's.

        How many processes have such a clock; 0 seconds: they are right again.
        """
        if pids is None:
            self._write(EVERYONE, seconds)
        names = [path.name for path in self._folder.iterdir()] if pids is None else [str(pid) for pid in pids]
        return sum(self._put(name, seconds) for name in names if name != EVERYONE)

    def _put(self, name: str, seconds: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._write(name, seconds, new=False)
            return True
        return False

    def _write(self, name: str, offset: float, new: bool = True) -> None:
        """In place: the process has the file mapped."""
        with (self._folder / name).open("wb" if new else "rb+") as file:
            file.write(struct.pack("d", offset))
