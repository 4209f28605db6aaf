"""How is a block of settings read, written back, and described to an editor? All three from one table.

A block is a frozen dataclass, one line per setting: its name in the file, its reader, what it means, and its default
(`setting("maxConnections", whole(1), "Requests in flight or waiting.", default=1000)`). A `Reader` is a function that gets
the value and its place, and raises ConfigError with a sentence, together with the JSON schema of the values it accepts.
The schema is never stricter than the reader; rules that need several settings at once are the reader's alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

from cluster.config.mistakes import ConfigError, Location, Read, Steps, a, did_you_mean, dotted, shown

Schema = dict[str, Any]
Writer = Callable[[Any], object]
T = TypeVar("T")

NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,62}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one kind of value. `example` writes a default as a person would: 5m, not 300."""

    read: Read
    schema: Schema
    example: Writer | None = None

    def __call__(self, value: object, at: Location) -> Any:
        return self.read(value, at)


def reads(schema: Schema, example: Writer | None = None) -> Callable[[Read], Reader]:
    """Makes a reader of a function; `schema` describes the values that it accepts."""
    return lambda read: Reader(read, schema, example)


def setting(
    name: str,
    reader: Reader,
    description: str,
    *,
    default: Any = MISSING,
    factory: Any = MISSING,
    write: Writer | None = None,
    later: bool = False,
) -> Any:
    """A dataclass field for the setting `name`. `later`: its default depends on other blocks; it is None until the caller
    settles it."""
    metadata = {"key": name, "reader": reader, "description": description, "write": write, "later": later}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


Also = Mapping[str, Reader]  # keys that belong to a block but are taken out before it is read
NONE: Also = {}


def block(cls: type[T], also: Also = NONE) -> Reader:
    """Reads a nested block."""
    return Reader(lambda value, at: read_block(cls, value, at, also), block_schema(cls, also))


def keys_of(cls: type[Any]) -> list[str]:
    """The block's keys as they are written in the file."""
    return [f.metadata["key"] for f in _fields(cls)]


def read_block(cls: type[T], value: object, at: Location, also: Also = NONE, **given: Any) -> T:
    """The block that `value` describes; what is mistaken or missing gets its default, or None where there is none."""
    table = {f.metadata["key"]: f for f in _fields(cls)}
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)} is not a block of settings ({', '.join(table)})")
    for name, item in (value or {}).items():
        spot = at.step(name)
        if name not in table and (item is not None or name not in also):
            at.log.note(spot.steps)
            spot.mistake(f"unknown setting (allowed: {', '.join([*table, *also])}){did_you_mean(name, [*table, *also])}")
        elif item is not None:
            at.log.note(spot.steps)
            given |= _kept(table[name].name, spot.read(table[name].metadata["reader"], item))
        elif not (_may_be_empty(table[name]) if name in table else "null" in also[name].schema["type"]):
            at.log.note(spot.steps)
            spot.mistake("has no value; remove the key to use the default")
    for name, f in table.items():
        if f.name not in given and _default(f) is MISSING:
            given[f.name] = None  # settled by the caller, or never used: the mistake below ends the reading
            if not f.metadata["later"] and at.log.clean(at.step(name).steps):
                at.step(name).mistake("is missing")
    return cls(**given)


def block_schema(cls: type, also: Also = NONE) -> Schema:
    """The JSON schema of a block: the settings in the order of the table."""
    table = _fields(cls)
    required = [f.metadata["key"] for f in table if _is_required(f)]
    properties = {f.metadata["key"]: _setting_schema(f) for f in table} | {name: reader.schema for name, reader in also.items()}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else or_null(schema)


def _setting_schema(f: dataclasses.Field[Any]) -> Schema:
    reader, default = f.metadata["reader"], _default(f)
    schema = {"description": f.metadata["description"], **reader.schema}
    if _may_be_empty(f) and not _is_required(f):
        schema = or_null(schema)
    if isinstance(default, bool | int | float | str) or (isinstance(default, tuple) and default and not f.metadata["later"]):
        schema["default"] = reader.example(default) if reader.example else plain(default)
    return schema


def or_null(schema: Schema) -> Schema:
    """The schema, for a place where the value may be left empty."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": list(dict.fromkeys([*kinds, "null"]))}


def named(kind: str, reader: Reader, key: Reader | None = None, to: str = "its settings") -> Reader:
    """Reads a mapping from names of this kind to whatever `reader` reads. `key` reads a name."""
    key = key or name_of(kind)

    def read(value: object, at: Location) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{shown(value)} is not a mapping from {a(kind)} to {to}")
        result: dict[str, Any] = {}
        for given, item in value.items():
            spot = at.step(given)
            at.log.note(spot.steps)
            name = spot.read(key, given)
            if name in result:
                spot.mistake(f"{name} is given twice")
            result |= _kept(name, spot.read(reader, item))
        return result

    return Reader(read, {"type": "object", "propertyNames": key.schema, "additionalProperties": reader.schema})


def each(reader: Reader, what: str) -> Reader:
    """Reads a list (`what` it is a list of, for the sentence) into a tuple."""

    def read(value: object, at: Location) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{shown(value)} is not a list of {what}")
        items = []
        for i, item in enumerate(value):
            at.log.note(at.item(i).steps)
            items.append(at.item(i).read(reader, item))
        return tuple(item for item in items if item is not None)

    return Reader(read, {"type": "array", "items": reader.schema})


def name_of(kind: str) -> Reader:
    """Reads the name of an agent or a region. No dots: Serve's apps are called agent.version.region."""

    def read(value: object, at: Location) -> str:
        if not re.fullmatch(NAME, text(value, kind)):
            raise ConfigError(
                f"{shown(value)} is not a name for {a(kind)} (letters, digits, - and _; at most 63; a letter or digit first)"
            )
        return str(value)

    return Reader(read, {"type": "string", "pattern": f"^{NAME}$"})


def text(value: object, kind: str) -> str:
    """A string. Raises ConfigError that explains what YAML makes of a word without quotes."""
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
        is_default = value == _default(f) and dotted(path) not in written
        if value is None or (is_default and not f.metadata["later"]):
            continue
        write = f.metadata["write"]
        result[f.metadata["key"]] = write(value) if write else plain(value, written, path)
    return result


def _fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if "key" in f.metadata]


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return _default(f) is MISSING and not f.metadata["later"]


def _may_be_empty(f: dataclasses.Field[Any]) -> bool:
    """Whether a key without a value means the default: of blocks it does, of single values it is a slip."""
    return not isinstance(_default(f), bool | int | float | str)


def _kept(name: Any, value: object) -> dict[Any, Any]:
    return {} if name is None or value is None else {name: value}
