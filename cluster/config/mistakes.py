"""How are mistakes in the settings collected and shown?

A reader that refuses a value raises ConfigError with a sentence; `Location.read` puts the path before it, notes it in the
log and reading goes on, so that one run lists all mistakes, in the order of the document.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Steps = tuple[str | int, ...]  # ("gateways", 0, "port"), shown as gateways[0].port
Read = Callable[[object, "Location"], Any]


class ConfigError(ValueError):
    """What is wrong with the settings, one line per mistake."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)
        self.mistakes: tuple[str, ...] = mistakes

    def __str__(self) -> str:
        return "\n".join(self.mistakes)


class MistakeLog:
    """What reading has found: the mistakes, what was written, and where a moved or merged block really stands."""

    def __init__(self) -> None:
        self.mistakes: list[tuple[Steps, str]] = []
        self.written: dict[Steps, int] = {}  # to its position in the document
        self.origins: dict[Steps, tuple[str | None, Steps]] = {}  # to the file (None: this one) and the path in it

    def add(self, steps: Steps, sentence: str) -> None:
        self.mistakes.append((steps, f"{self._shown(steps)}: {sentence}"))

    def note(self, steps: Steps) -> None:
        self.written.setdefault(steps, len(self.written))

    def clean(self, steps: Steps) -> bool:
        """Whether there is no mistake at or below this path."""
        return all(found[: len(steps)] != steps for found, _ in self.mistakes)

    def in_order(self) -> list[str]:
        """The mistakes in the order of the document."""
        return [line for _, line in sorted(self.mistakes, key=lambda mistake: self._position(mistake[0]))]

    def _position(self, steps: Steps) -> int:
        file, real = self._real(steps)
        moved = not file and real != steps
        steps = real if moved else steps
        nearest = next((steps[:i] for i in range(len(steps), 0, -1) if steps[:i] in self.written), ())
        if moved:  # it stood in that block, but was read elsewhere: after what was read there
            return max(i for path, i in self.written.items() if path[: len(nearest)] == nearest)
        return self.written.get(nearest, -1)

    def _shown(self, steps: Steps) -> str:
        file, real = self._real(steps)
        return f"{file}: {dotted(real)}" if file else dotted(real) or "args"

    def _real(self, steps: Steps) -> tuple[str | None, Steps]:
        for i in range(len(steps), 0, -1):
            if steps[:i] in self.origins:
                file, real = self.origins[steps[:i]]
                return file, real + steps[i:]
        return None, steps


@dataclass(frozen=True, slots=True)
class Location:
    """Where a value stands: its path, the log of this reading, and the folder that relative paths start from."""

    steps: Steps
    log: MistakeLog
    folder: Path

    def step(self, key: object) -> Location:
        return Location((*self.steps, key if isinstance(key, str) else shown(key)), self.log, self.folder)

    def item(self, index: int) -> Location:
        return Location((*self.steps, index), self.log, self.folder)

    def mistake(self, sentence: str) -> None:
        self.log.add(self.steps, sentence)

    def clean(self, *keys: str) -> bool:
        """Whether these keys of the block, or all of it, are without a mistake."""
        return all(self.log.clean(steps) for steps in [(*self.steps, key) for key in keys] or [self.steps])

    def read(self, reader: Read, value: object) -> Any:
        """The value, or None with a mistake noted."""
        try:
            return reader(value, self)
        except ConfigError as error:
            for sentence in error.mistakes:
                self.mistake(sentence)
            return None


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def dotted(steps: Steps) -> str:
    shown_steps = (f"[{s}]" if isinstance(s, int) else "." + (s if s and s.isprintable() else repr(s)) for s in steps)
    return "".join(shown_steps).removeprefix(".")


def shown(value: object) -> str:
    """A value as the file says it, on one line and not too long."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    short = reprlib.Repr()
    short.maxstring, short.maxother = 80, 80
    try:
        return str(value) if hasattr(value, "isoformat") else short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a very large number"


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """`; did you mean round-robin?`, or nothing when nothing is near."""
    near = {_folded(name): name for name in allowed}
    matches = difflib.get_close_matches(_folded(given)[:80], near, n=1) if isinstance(given, str) else []
    return f"; did you mean {near[matches[0]]}?" if matches else ""


def _folded(name: Any) -> str:
    return str(name).lower().replace("_", "").replace("-", "")
