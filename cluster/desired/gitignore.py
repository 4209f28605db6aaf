"""Which files of a folder are not part of the code? Rules as in .gitignore, read from .gitignore and .swiftclawignore.

Pure: `IgnoreRules` are made from lines and asked about paths. The last rule that matches decides, `!` takes back an earlier
one, and a file in an ignored folder stays ignored. Not for finding what git tracks: a tracked file that a rule matches is
ignored here. Source: gitignore(5). The globs are pathspec's; the rules of nested folders are put one after another here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pathspec import GitIgnoreSpec
from pathspec.pattern import Pattern

FILES = (".gitignore", ".swiftclawignore")  # of one folder; the later one wins
ALWAYS = (
    ".git/", ".hg/", ".svn/", ".venv/", "__pycache__/", ".swiftclaw/", "node_modules/", ".mypy_cache/", ".pytest_cache/",
    ".ruff_cache/", ".hypothesis/", "*.pyc", ".DS_Store",
)  # fmt: skip
_END = "/\x01"  # pathspec matches what lies in a matched folder, too; with this at the end of both, the path itself only


@dataclass(frozen=True)
class IgnoreRule:
    """One line: what it matches, relative to the folder of its file, and whether that is then ignored."""

    base: str  # the folder of its file, "" or ending in "/"
    pattern: Pattern
    only_folders: bool
    ignores: bool

    def matches(self, path: str, is_folder: bool) -> bool:
        if not path.startswith(self.base) or (self.only_folders and not is_folder):
            return False
        return self.pattern.match_file(path[len(self.base) :] + _END) is not None


class IgnoreRules:
    """The rules of a folder and of the folders above it; `below` adds those of a folder in it."""

    def __init__(self, rules: Iterable[IgnoreRule] = ()) -> None:
        self._rules = tuple(rules)

    def below(self, base: str, lines: Iterable[str]) -> IgnoreRules:
        rules = (_rule(base, line) for line in lines)
        return IgnoreRules([*self._rules, *(rule for rule in rules if rule is not None)])

    def ignore(self, path: str, is_folder: bool) -> bool:
        """`path` is relative to where the search began, with `/`; no folder above it is ignored."""
        for rule in reversed(self._rules):
            if rule.matches(path, is_folder):
                return rule.ignores
        return False


def _rule(base: str, line: str) -> IgnoreRule | None:
    text = line.rstrip("\r\n")
    if not text.endswith("\\ "):
        text = text.rstrip(" ")
    if text.startswith("#"):
        return None
    ignores = not text.startswith("!")
    text = text.removeprefix("!")
    only_folders, text = text.endswith("/"), text.rstrip("/")
    if not text:
        return None
    anchored = "/" in text
    if text == "**" or text.endswith("/**"):
        text += "/*"  # everything inside, but not the folder itself
    glob = f"/{text.removeprefix('/')}" if anchored else f"**/{text}"
    try:
        (pattern,) = GitIgnoreSpec.from_lines([glob + _END]).patterns
    except ValueError:  # no pattern, such as an open character class: it matches nothing, as in git
        return None
    return IgnoreRule(base, pattern, only_folders, ignores)
