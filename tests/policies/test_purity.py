"""policies/ is pure judgement: it imports the standard library and itself, no clock, no waiting, no global chance."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import policies

FILES = sorted(Path(policies.__file__).parent.rglob("*.py"))
FORBIDDEN = {"time", "asyncio", "threading", "socket", "os", "subprocess", "datetime"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_imports_nothing_but_pure_things(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.partition(".")[0]
            assert top == "policies" or top in sys.stdlib_module_names - FORBIDDEN
            if top == "random":  # `import random` would bring the module's own state along
                assert isinstance(node, ast.ImportFrom)
                assert [alias.name for alias in node.names] == ["Random"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_head_says_what_it_is_for_in_ten_lines_or_fewer(path: Path) -> None:
    head = ast.get_docstring(ast.parse(path.read_text()))
    assert head
    assert len(head.splitlines()) <= 10
