"""Which files of a folder are no part of the code? Rules as in .gitignore, read from .gitignore and .swiftclawignore.

Pure: `IgnoreRules` are made of text and asked with paths. The last rule that matches decides, `!` takes back what one before it
ignored, and what lies in an ignored folder stays ignored. Not for finding what git tracks: a tracked file that a rule
matches is ignored here.
Source: gitignore(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FILES = (".gitignore", ".swiftclawignore")  # of one folder, the later one wins
ALWAYS = (
    ".git/", ".hg/", ".svn/", ".venv/", "__pycache__/", ".swiftclaw/", "node_modules/", ".mypy_cache/", ".pytest_cache/",
    ".ruff_cache/", ".hypothesis/", "*.pyc", ".DS_Store",
)  # fmt: skip


@dataclass(frozen=True)
class IgnoreRule:
    """One line: what it matches, from its own folder on, and whether that is then ignored."""

    base: str  # the folder of its file, "" or ending in "/"
    pattern: re.Pattern[str]
    only_folders: bool
    ignores: bool

    def matches(self, path: str, is_folder: bool) -> bool:
        if not path.startswith(self.base) or (self.only_folders and not is_folder):
            return False
        return self.pattern.fullmatch(path[len(self.base) :]) is not None


class IgnoreRules:
    """The rules of a folder and of those above it; `below` adds those of a folder in it."""

    def __init__(self, rules: Iterable[IgnoreRule] = ()) -> None:
        self._rules = tuple(rules)

    def below(self, base: str, lines: Iterable[str]) -> IgnoreRules:
        found = (_rule(base, line) for line in lines)
        return IgnoreRules([*self._rules, *(rule for rule in found if rule is not None)])

    def ignore(self, path: str, is_folder: bool) -> bool:
        """`path` is relative to where the search began, with `/`."""
        for rule in reversed(self._rules):
            if rule.matches(path, is_folder):
                return rule.ignores
        return False


def _rule(base: str, line: str) -> IgnoreRule | None:
    text = line.rstrip("\r\n")
    if not text.endswith("\\ "):
        text = text.rstrip(" ")
    if not text or text.startswith("#"):
        return None
    ignores = not text.startswith("!")
    text = text.removeprefix("!")
    only_folders = text.endswith("/")
    text = text.rstrip("/")
    if not text:
        return None
    anchored = "/" in text
    text = text.removeprefix("/")
    pattern = _expression(text) if anchored else f"(?:.*/)?{_expression(text)}"
    try:
        return IgnoreRule(base, re.compile(pattern, re.DOTALL), only_folders, ignores)
    except re.error:  # a broken character class: matches nothing, as in git
        return None


def _expression(glob: str) -> str:
    """A glob as a regular expression: `*` and `?` stop at `/`, `**` does not."""
    out, at = [], 0
    while at < len(glob):
        rest = glob[at:]
        if rest == "**":
            out.append(".*")
            at += 2
        elif rest.startswith("**/"):
            out.append("(?:.*/)?")
            at += 3
        elif rest[0] == "*":
            out.append("[^/]*")
            at += 1
        elif rest[0] == "?":
            out.append("[^/]")
            at += 1
        elif rest[0] == "[" and (end := rest.find("]", 2)) > 0:
            inner = rest[1:end].replace("\\", "\\\\")
            out.append(f"[^{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]")
            at += end + 1
        elif rest[0] == "\\" and len(rest) > 1:
            out.append(re.escape(rest[1]))
            at += 2
        else:
            out.append(re.escape(rest[0]))
            at += 1
    return "".join(out)
