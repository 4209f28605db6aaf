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

    def step(self, seconds: float, pids: Iterable[int] | None = None) -> int:
        """Move the clocks of these processes, or of all and of those that start later. How many were moved."""
        names = [path.name for path in self._folder.iterdir()] if pids is None else [str(pid) for pid in pids]
        return sum(self._move(name, seconds) for name in names)

    def _move(self, name: str, seconds: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._write(name, self._offset(name) + seconds, new=name == EVERYONE)
            return name != EVERYONE
        return False

    def _offset(self, name: str) -> float:
        content: tuple[float] = struct.unpack("d", (self._folder / name).read_bytes())
        return content[0]

    def _write(self, name: str, offset: float, new: bool = True) -> None:
        """In place: the process has the file mapped."""
        with (self._folder / name).open("wb" if new else "rb+") as file:
            file.write(struct.pack("d", offset))
