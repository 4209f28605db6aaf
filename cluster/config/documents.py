"""What does a YAML or JSON file contain, and what in it would be read differently from what was meant?

Ray reads its config files as YAML 1.1, where the second of two equal keys wins silently, 1:30 is ninety and 010 is
eight. The parsed content no longer shows that, so it is checked here, in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.config.mistakes import ConfigError, Steps, shown

_MERGE = "tag:yaml.org,2002:merge"
_TRUTHY = re.compile("yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|True|TRUE|False|FALSE")  # read as a boolean, unlike true, false
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's content, and the sentences about its text with the paths they are about."""

    content: Any
    complaints: tuple[tuple[Steps, str], ...]


def read_document(path: Path) -> Document:
    """Raises ConfigError with one line that names the file."""
    text = _text(path)
    try:
        return _from_json(text) if path.suffix == ".json" else _from_yaml(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {_one_line(error.problem or error.context)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: blocks are nested too deeply") from None
    except Exception as error:  # constructors of PyYAML let anything out: a KeyError for `!!bool maybe`
        raise ConfigError(f"{path}: not YAML: {_one_line(error)}") from None


def doubtful(path: Path) -> list[str]:
    """Sentences about what is valid YAML and may not be what was meant: the findings of yamllint that change the content.

    Not for its rules of style. Empty for JSON, and for a file that cannot be read: `read_document` reports that.
    """
    try:
        return [] if path.suffix == ".json" else list(_doubts(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, yaml.YAMLError):
        return []


def _doubts(text: str) -> Iterator[str]:
    anchors: dict[str, int] = {}
    used: set[str] = set()
    for token in yaml.scan(text):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.ScalarToken) and token.plain and _TRUTHY.fullmatch(token.value):
            meant = "true" if token.value.lower() in ("yes", "on", "true") else "false"
            yield f"line {line}: YAML 1.1 reads {token.value} as {meant}, YAML 1.2 as text; write {meant}, or put it in quotes"
        elif isinstance(token, yaml.AnchorToken):
            if token.value in anchors:
                yield f"line {line}: the anchor &{token.value} is defined on line {anchors[token.value]} too"
            anchors[token.value] = line
        elif isinstance(token, yaml.AliasToken):
            used.add(token.value)
    yield from (f"line {line}: the anchor &{name} is never used" for name, line in anchors.items() if name not in used)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def _from_json(text: str) -> Document:
    complaints: list[tuple[Steps, str]] = []

    def block(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            complaints.append(((twice,), "is given twice in one block"))
        return result

    return Document(json.loads(text, object_pairs_hook=block), tuple(complaints))


def _from_yaml(text: str) -> Document:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(None, ())
        complaints = tuple(_complaints(root, (), set(), ()))  # before construction, which rewrites merged nodes
        return Document(loader.construct_document(root), complaints)
    finally:
        loader.dispose()


def _complaints(node: yaml.Node, steps: Steps, seen: set[int], parents: tuple[int, ...]) -> Iterator[tuple[Steps, str]]:
    if id(node) in parents:
        raise yaml.MarkedYAMLError(problem="an alias refers to a block that contains it", problem_mark=node.start_mark)
    if id(node) in seen:
        return
    seen.add(id(node))
    parents = (*parents, id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for name, item in node.value:
            spot = (*steps, name.value if isinstance(name, yaml.ScalarNode) else "?")
            line = name.start_mark.line + 1
            if isinstance(name, yaml.ScalarNode) and name.tag != _MERGE and lines.setdefault(name.value, line) != line:
                yield spot, f"is given twice, on lines {lines[name.value]} and {line}"
            yield from _complaints(item, spot, seen, parents)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _complaints(item, (*steps, i), seen, parents)
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and node.style is None:
        yield from ((steps, f"{node.value} {why} (line {node.start_mark.line + 1})") for why in _misread(node.value))


def _misread(number: str) -> Iterator[str]:
    digits = number.lstrip("+-")
    if ":" in number:
        yield "is read by YAML as a base-60 number; write a duration like 1h30m, or put it in quotes"
    elif "_" in number:
        yield f"is not a number to every YAML parser; write {number.replace('_', '')}"
    elif digits.isdigit() and digits.startswith("0") and digits != "0":
        yield f"is read by YAML as an octal number; write {digits.lstrip('0') or '0'}, or put it in quotes"


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def merged(over: Mapping[Any, Any], under: Mapping[Any, Any]) -> dict[Any, Any]:
    """`over`, and what only `under` has."""
    result = dict(over)
    for name, item in under.items():
        own = over.get(name)
        if isinstance(own, Mapping) and isinstance(item, Mapping):
            result[name] = merged(own, item)
        elif own is None:
            result[name] = item
    return result


def only_in(under: Mapping[Any, Any], over: Mapping[Any, Any], steps: Steps = ()) -> Iterator[Steps]:
    """The paths that a merge takes from `under`, each the topmost."""
    for name, item in under.items():
        own = over.get(name)
        spot = (*steps, name if isinstance(name, str) else shown(name))
        if own is None:
            yield spot
        elif isinstance(own, Mapping) and isinstance(item, Mapping):
            yield from only_in(item, own, spot)
