"""What the tree promises: imports point one way, names agree, and nothing private or local leaks in."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from cluster.config import ConfigError, agent_from_block
from cluster.config.agent_settings import LoadBalancing
from policies import STRATEGIES

ROOT = Path(__file__).parents[1]
PACKAGES = ("policies", "cluster", "deployments", "swiftclaw")  # each may import itself and those before it
OUTSIDE = ("examples", "benchmarks", "tests")  # no package imports these
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EVERY_FILE = [file for folder in (*PACKAGES, *OUTSIDE) for file in sorted((ROOT / folder).rglob("*.py"))]

SERVE_INTERNALS = {
    "cluster/placement/serve_internals.py",
    "tests/integration/test_serve_internals.py",
}  # the one place, and its test
ENVIRONMENT_READERS = {
    "deployments/workers/supervisor.py": "the environment that a worker inherits",
    "swiftclaw/cli/__init__.py": "SWIFTCLAW_DEBUG, for who develops it",
    "swiftclaw/cli/ray_cluster/driver.py": "how Ray's clusters are protected, and which one to join",
    "swiftclaw/cli/ray_cluster/local_cluster.py": "the environment that Ray's processes inherit",
    "swiftclaw/models/endpoint.py": "the key and the address of a model belong into no file",
}
AT_MOST = 14  # .py files side by side, `__init__.py` among them: about what a reader takes in at a glance
FOLDERS_WITH_MORE = {"swiftclaw/cli/commands": "one file per command, named as the command"}

MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:home|root|work|workspace|Users)/\w")


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=name_of)


@cache
def imported(file: Path) -> tuple[tuple[int, str], ...]:
    """Line and full name of every module that the file imports, in functions and under TYPE_CHECKING as well."""
    return tuple(imports(file))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parent.parts
            base = package[: len(package) - node.level + 1] if node.level else ()
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{whole}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


@each(FILES)
def test_imports_point_one_way(file: Path) -> None:
    """swiftclaw -> deployments -> cluster -> policies -> standard library; tests/policies/test_purity.py has the last step."""
    place = PACKAGES.index(file.relative_to(ROOT).parts[0])
    forbidden = {*PACKAGES[place + 1 :], *OUTSIDE}
    wrong = [f"{name_of(file)}:{line} imports {module}" for line, module in imported(file) if module.split(".")[0] in forbidden]
    assert wrong == []


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}
FOLDERS = {module_of(file) for file in FILES if file.name == "__init__.py"}
WITH_FOLDERS = {folder.rpartition(".")[0] for folder in FOLDERS}


def room_of(module: str) -> str:
    """The sub-package of a module; a module that lies beside sub-packages stands for itself."""
    folder = module if module in FOLDERS else module.rpartition(".")[0]
    return module if folder in WITH_FOLDERS else folder


def arrows() -> Iterator[tuple[str, str]]:
    """Importer and imported, for every import of one module by another within the four packages, TYPE_CHECKING included."""
    for module, file in MODULES.items():
        for _, name in imported(file):
            while name and name not in MODULES:  # `package.module.Class` is an import of `package.module`
                name = name.rpartition(".")[0]
            if name and name != module:
                yield module, name


def circle(pairs: Iterable[tuple[str, str]]) -> str:
    """One circle among the arrows, if there is any."""
    ends: dict[str, set[str]] = {}
    for start, end in pairs:
        ends.setdefault(start, set()).add(end)
    try:
        TopologicalSorter(ends).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return ""


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(arrows()) == ""


def test_no_arrow_runs_back_between_sub_packages() -> None:
    rooms = {(room_of(start), room_of(end)) for start, end in arrows()}
    assert circle((start, end) for start, end in rooms if start != end) == ""


def test_a_circle_is_recognised() -> None:
    line = [("a", "b"), ("b", "c"), ("a", "c")]
    assert circle(line) == ""
    assert circle([*line, ("c", "b")]) in ("b -> c -> b", "c -> b -> c")


def test_a_folder_is_small_enough_to_take_in() -> None:
    sizes = Counter(file.parent.relative_to(ROOT).as_posix() for file in FILES)
    assert {folder for folder, size in sizes.items() if size > AT_MOST} == set(FOLDERS_WITH_MORE)


def test_a_public_class_name_stands_once() -> None:
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{name_of(file)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@each(TESTS)
def test_what_tests_share_is_in_no_test_file(file: Path) -> None:
    """But in a `conftest.py`, or in a module beside it that holds no test."""
    wrong = [f"{name_of(file)}:{line} {module}" for line, module in imported(file) if re.match(r"tests\..*\btest_", module)]
    assert wrong == []


@each(EXAMPLES)
def test_examples_import_what_users_import(file: Path) -> None:
    inside = [module for _, module in imported(file) if module.split(".")[0] in PACKAGES]
    assert set(inside) <= {"swiftclaw.Agent", "swiftclaw.connect"}


@each(EVERY_FILE)
def test_one_file_knows_serves_internals(file: Path) -> None:
    private = [(line, module) for line, module in imported(file) if re.match(r"ray\..*(?<=\.)_private\b", module)]
    assert not private or name_of(file) in SERVE_INTERNALS, private


@each(FILES)
def test_the_environment_is_read_in_few_places_with_a_reason(file: Path) -> None:
    reads = any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "environb", "getenv", "putenv")
        and getattr(node.value, "id", "") == "os"
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
    ) or any(re.match(r"os\.(environ|getenv|putenv)", module) for _, module in imported(file))
    assert reads == (name_of(file) in ENVIRONMENT_READERS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_has_one_name_everywhere(name: str) -> None:
    module = name.replace("-", "_")
    strategy = getattr(importlib.import_module(f"policies.strategies.{module}"), name.title().replace("-", ""))
    assert STRATEGIES[name] is strategy
    assert (ROOT / f"tests/policies/strategies/test_{module}.py").is_file()
    assert f"| `{name}` |" in (ROOT / "docs/strategies.md").read_text("utf-8")
    assert f"{name}: " in (ROOT / f"policies/strategies/{module}.py").read_text("utf-8").splitlines()[0]


def test_every_strategy_can_be_configured_and_nothing_else() -> None:
    for name in STRATEGIES:
        agent = agent_from_block("a", {"agent": "app:agent", "loadBalancing": {"strategy": name}}, ROOT)
        assert agent.load_balancing == LoadBalancing(strategy=name)
    with pytest.raises(ConfigError) as refused:
        agent_from_block("a", {"agent": "app:agent", "loadBalancing": {"strategy": "?"}}, ROOT)
    assert f"({', '.join(STRATEGIES)})" in str(refused.value)


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = [name_of(file) for file in committed() if MACHINE_PATH.search(file.read_bytes())]
    assert found == []


def committed() -> list[Path]:
    """What git has or would take; without git, the sources."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        return EVERY_FILE
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]
