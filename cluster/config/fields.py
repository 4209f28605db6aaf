"""How is a block of settings read and written, and how are all its mistakes kept?

A block is a frozen dataclass whose fields carry their name in the file and the function that reads them
(`metadata=setting("maxConnections", whole(1))`); the same table writes the block back. A reader gets the value and the place
where it stands and raises ConfigError with a sentence; `read_block` puts the path before it and goes on with the next field,
so that all mistakes are listed together.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Steps = tuple[str | int, ...]  # ("gateways", 0, "port"), shown as gateways[0].port
Reader = Callable[[object, "Location"], Any]
Writer = Callable[[Any], object]
T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


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

    def read(self, reader: Reader, value: object) -> Any:
        """The value, or None with a mistake noted."""
        try:
            return reader(value, self)
        except ConfigError as error:
            for sentence in error.mistakes:
                self.mistake(sentence)
            return None


def setting(name: str, reader: Reader, *, write: Writer | None = None, later: bool = False) -> dict[str, object]:
    """A field's metadata. `later`: its default depends on other blocks; it is None until the caller settles it."""
    return {"key": name, "reader": reader, "write": write, "later": later}


def block(cls: type[T], also: Iterable[str] = ()) -> Callable[[object, Location], T]:
    """Reads a nested block. `also`: keys that belong there but were taken out before."""
    return lambda value, at: read_block(cls, value, at, also)


def read_block(cls: type[T], value: object, at: Location, also: Iterable[str] = (), **given: Any) -> T:
    """The block that `value` describes; what is mistaken or missing gets its default, or None where there is none."""
    table = {f.metadata["key"]: f for f in _fields(cls)}
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)} is not a block of settings ({', '.join(table)})")
    for name, item in (value or {}).items():
        spot = at.step(name)
        if name not in table:
            at.log.note(spot.steps)
            spot.mistake(f"no such setting ({', '.join([*table, *also])}){did_you_mean(name, [*table, *also])}")
        elif item is not None:
            at.log.note(spot.steps)
            given |= _kept(table[name].name, spot.read(table[name].metadata["reader"], item))
        elif isinstance(_default(table[name]), bool | int | float | str):
            at.log.note(spot.steps)
            spot.mistake("has no value; leave the key out to get the default")
    for name, f in table.items():
        if f.name not in given and _default(f) is dataclasses.MISSING:
            given[f.name] = None  # settled by the caller, or never used: the mistake below ends the reading
            if not f.metadata["later"] and at.log.clean(at.step(name).steps):
                at.step(name).mistake("is missing")
    return cls(**given)


def named(kind: str, reader: Reader, check: Callable[[object], object] | None = None) -> Reader:
    """Reads a mapping from names of this kind to whatever `reader` reads. `check` raises for a name that will not do."""

    def read(value: object, at: Location) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{shown(value)} is not a mapping from {a(kind)} to its settings")
        found: dict[str, Any] = {}
        for name, item in value.items():
            spot = at.step(name)
            at.log.note(spot.steps)
            named_well = spot.read(lambda given, _: (check or name_of(kind))(given), name)
            found |= _kept(named_well, spot.read(reader, item))
        return found

    return read


def each(reader: Reader, what: str) -> Reader:
    """Reads a list (`what` it is a list of, for the sentence) into a tuple."""

    def read(value: object, at: Location) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{shown(value)} is not a list of {what}")
        found = []
        for i, item in enumerate(value):
            at.log.note(at.item(i).steps)
            found.append(at.item(i).read(reader, item))
        return tuple(item for item in found if item is not None)

    return read


def name_of(kind: str) -> Callable[[object], str]:
    """Checks the name of an agent or a region. No dots: Serve's apps are called agent.version.region."""

    def check(value: object) -> str:
        if not NAME.fullmatch(text(value, kind)):
            raise ConfigError(
                f"{shown(value)} is not a name for {a(kind)} (letters, digits, - and _; at most 63; a letter or digit first)"
            )
        return str(value)

    return check


def text(value: object, kind: str) -> str:
    """A string; what YAML turned into something else because quotes were missing is explained."""
    if isinstance(value, bool):
        why = "YAML reads a bare yes, no, on, off, true or false as a boolean; put it in quotes"
    elif isinstance(value, int | float):
        why = "YAML reads it as a number; put it in quotes"
    elif hasattr(value, "isoformat"):
        why = "YAML reads it as a date; put it in quotes"
    elif not isinstance(value, str):
        why = "it must be text"
    else:
        return value
    raise ConfigError(f"{shown(value)} is not {a(kind)}: {why}")


def plain(value: object, written: frozenset[str] = frozenset(), steps: Steps = ()) -> Any:
    """Settings as plain JSON: of a block, what was written or differs from the default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return write_block(value, written, steps)
    if isinstance(value, Mapping):
        return {name: plain(item, written, (*steps, name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, written, (*steps, i)) for i, item in enumerate(value)]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def write_block(settings: Any, written: frozenset[str], steps: Steps = ()) -> dict[str, object]:
    result: dict[str, object] = {}
    for f in _fields(type(settings)):
        value, path = getattr(settings, f.name), (*steps, f.metadata["key"])
        unsaid = value == _default(f) and dotted(path) not in written
        if value is None or (unsaid and not f.metadata["later"]):
            continue
        write = f.metadata["write"]
        result[f.metadata["key"]] = write(value) if write else plain(value, written, path)
    return result


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


def _fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if "key" in f.metadata]


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _kept(name: Any, value: object) -> dict[Any, Any]:
    return {} if name is None or value is None else {name: value}
