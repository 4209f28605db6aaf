"""What the pages say is so: commands are run, links lead somewhere, tables and figures are those of code and results.

As a program, this copies the figures: `python tests/test_readme.py`.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/command-line.md",
    "docs/monitoring.md",
    "docs/rate-limits.md",
    "docs/security.md",
    "docs/strategies.md",
    "docs/versions.md",
)
README = ROOT / "README.md"
ADDRESS = "127.0.0.1:8000"

RUN_ELSEWHERE = {  # a command of the pages -> a test that runs it, or what it stands for
    ".venv/bin/swiftclaw status": (
        "tests/integration/test_main_job.py::test_status_and_instances_as_json_are_what_the_api_gives"
    ),
    ".venv/bin/swiftclaw instances my-agent --health": (
        "tests/swiftclaw/cli/commands/test_reading.py::test_health_shows_the_reason_and_the_breaker"
    ),
    ".venv/bin/swiftclaw test failover my-agent --instance instance-1": (
        "tests/integration/test_failover.py::test_a_killed_instance_is_replaced_and_its_traffic_is_shared_evenly"
    ),
    **dict.fromkeys(
        (
            ".venv/bin/swiftclaw deploy shop --canary 10",
            ".venv/bin/swiftclaw status shop",
            ".venv/bin/swiftclaw promote shop --canary 100",
        ),
        "tests/integration/test_rollouts.py::test_from_10_percent_to_all_of_it_and_no_request_fails",
    ),
    ".venv/bin/swiftclaw rollback shop": (
        "tests/integration/test_rollouts.py::test_a_rollback_in_the_middle_is_noticed_by_nobody"
    ),
    ".venv/bin/swiftclaw metrics my-agent": (
        "tests/swiftclaw/cli/commands/test_metrics.py::test_bars_are_as_long_as_the_numbers_and_the_longest_is_the_largest"
    ),
    ".venv/bin/swiftclaw metrics my-agent --metric response-times": (
        "tests/swiftclaw/cli/commands/test_metrics.py::test_an_instance_without_requests_has_no_times"
    ),
    ".venv/bin/swiftclaw events": "tests/swiftclaw/cli/commands/test_metrics.py::test_events_are_a_line_each",
    ".venv/bin/swiftclaw down": "tests/integration/conftest.py::a_cluster",
    ".venv/bin/serve run cluster.yaml": (
        "tests/integration/test_serve_run.py::test_serve_run_brings_up_gateways_and_agents_and_ends_with_ctrl_c"
    ),
}
RUN_HERE = {  # here it is only asked how it is used: what it does in full takes minutes
    "scripts/up": ["scripts/up", "--help"],
    ".venv/bin/swiftclaw check": [".venv/bin/swiftclaw", "check"],
    ".venv/bin/python benchmarks/compare.py": [sys.executable, "benchmarks/compare.py", "--help"],
    ".venv/bin/python benchmarks/simulate.py": [sys.executable, "benchmarks/simulate.py", "--help"],
}
RUNS_THIS = {  # whoever reads this has run them; that one calls the other is tested
    "scripts/test",
    "scripts/lint",
    ".venv/bin/pytest tests/policies",
    ".venv/bin/pytest tests --ignore=tests/integration",
    ".venv/bin/python tests/test_readme.py",
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for page in PAGES for block in fenced(page, "bash") for line in block.splitlines() if line.strip()]


CURLS = [command for command in commands() if command.startswith("curl ")]
OTHERS = [command for command in dict.fromkeys(commands()) if command not in CURLS]


# --- commands -----------------------------------------------------------------------------------------------------------


def test_every_command_is_run_somewhere() -> None:
    assert set(OTHERS) == {*RUN_ELSEWHERE, *RUN_HERE, *RUNS_THIS}
    assert CURLS


@pytest.mark.parametrize("command", RUN_ELSEWHERE)
def test_the_test_that_runs_it_is_there(command: str) -> None:
    file, _, name = RUN_ELSEWHERE[command].partition("::")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    (found,) = [n for n in ast.walk(ast.parse(text_of(file))) if isinstance(n, functions) and n.name == name]
    for word in command.removeprefix(".venv/bin/").removeprefix("swiftclaw ").split():
        assert f'"{word}"' in ast.get_source_segment(text_of(file), found, padded=True).replace("'", '"')


@pytest.mark.parametrize("command", RUN_HERE)
def test_it_can_be_typed(command: str) -> None:
    run = RUN_HERE[command]
    if run[0].startswith(".venv/"):  # whichever environment the tests run in
        run = [str(Path(sys.executable).parent / Path(run[0]).name), *run[1:]]
    if run[0] == "scripts/up" and not (ROOT / ".venv/.swiftclaw-installed").is_file():
        subprocess.run(["bash", "-n", *run[:1]], cwd=ROOT, check=True)  # it would install; no test should
        return
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match("[Uu]sage: |cluster.yaml is valid: ", done.stdout)


def test_scripts_call_each_other() -> None:
    assert "exec scripts/test" in text_of(".ci/run")
    assert "\nscripts/lint\n" in text_of("scripts/test")
    for script in ("up", "test", "lint"):
        assert f"scripts/{script}" in commands() and (ROOT / "scripts" / script).stat().st_mode & 0o111


# --- examples -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def address(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The example agent behind a gateway, in this process and without Ray."""
    from examples.support import agent, customers
    from tests.deployments.conftest import DataPlane

    monkeypatch.setattr(agent, "name", "my-agent")
    plane = DataPlane(blocks={"my-agent": {"loadBalancing": {"sessionAffinity": {"enabled": True}}}})
    await plane.start()
    try:
        await plane.add(agent, 3)
        yield plane.url.removeprefix("http://")
    finally:
        await plane.stop()
        customers.clear()


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
async def test_the_curls_answer_as_it_says(address: str) -> None:
    answers = [await output("bash", "-c", command.replace(ADDRESS, address)) for command in CURLS]
    (said,) = re.findall(r"^The first answers `(.*?)`", text_of("README.md"), re.MULTILINE)
    assert json.loads(answers[0]) == json.loads(answers[1]) == json.loads(said)
    assert answers[2].startswith("data: {") and answers[2].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("about", "says"), [("openai", "order 1042"), ("websockets", "hello\n")])
async def test_the_python_clients_are_answered(address: str, about: str, says: str) -> None:
    (example,) = [block for block in fenced("README.md", "python") if f"from {about}" in block]
    assert says in await output(sys.executable, "-c", example.replace(ADDRESS, address))


async def test_connect_is_called_as_it_is_defined() -> None:
    """It needs Ray; tests/integration/test_main_job.py runs the same calls."""
    (example,) = [block for block in fenced("README.md", "python") if "import connect\n\n\nasync" in block]
    check = f"""
import inspect, ast
from swiftclaw.client import AgentHandle, connect
inspect.signature(connect).bind("my-agent")
calls = [n for n in ast.walk(ast.parse({example!r})) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
for call in calls:
    if getattr(call.func.value, "id", "") == "agent":
        method = getattr(AgentHandle, call.func.attr)
        inspect.signature(method).bind(None, *call.args, **{{k.arg: k.value for k in call.keywords}})
        print(call.func.attr)
"""
    assert set((await output(sys.executable, "-c", check)).split()) == {"ask", "stream"}


async def test_the_agent_of_ones_own_answers_and_its_entry_is_valid() -> None:
    from cluster.config import agent_from_block
    from swiftclaw.agent import Turn

    (example,) = [block for block in fenced("README.md", "python") if "import Agent\n" in block]
    names: dict[str, Any] = {}
    exec(example, names)
    assert await names["agent"].answer(Turn("hello", "s", None)) == "hello"
    (entry,) = fenced("README.md", "yaml")
    for name, block in yaml.safe_load(entry)["agents"].items():
        assert (ROOT / "cluster.yaml").is_file() and agent_from_block(name, block, ROOT).agent == f"{name}:agent"


# --- tables, lists, links -----------------------------------------------------------------------------------------------


def test_the_table_of_commands_is_the_command_lines() -> None:
    from swiftclaw.cli import COMMANDS

    assert re.findall(r"^\| `swiftclaw (\S+?)[` ]", text_of("README.md"), re.MULTILINE) == list(COMMANDS)


def test_the_heads_of_tables_are_those_that_are_printed() -> None:
    from rich.console import Console

    from swiftclaw.cli.output import tables

    row = {"id": "instance-1", "region": "ap-southeast-1", "version": "v1", "state": "healthy", "connections": 0}
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(tables.instances([{**row, "requests": 0, "error_rate": 0.0, "p95_ms": None, "uptime_s": 4}]))
    head, first = (line.rstrip() for line in captured.get().splitlines())
    shown = text_of("README.md")
    assert f"\n{head}\n" in shown
    assert re.sub(r"instance-\d ap-southeast-1", "instance-1 ap-southeast-1", shown).count(first[:-2]) == 2


def test_the_admin_ports_paths_are_all_there() -> None:
    served = set(re.findall(r'Route\("(/[^"]*)"', text_of("cluster/admin/app.py")))
    (table,) = re.findall(r"\| admin port \|.*?\n\n", text_of("README.md"), re.DOTALL)
    assert set(re.findall(r"(/(?:metrics|api|dashboard)[^` ]*)`", table)) == served


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if not link.startswith("https://"):
            assert (ROOT / page).parent.joinpath(link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    made_up = {"shop.py", "policies/strategies/power_of_two.py", "tests/policies/strategies/test_power_of_two.py"}
    named = re.findall(r"`((?:\.?[\w-]+/)*[\w.-]+\.(?:py|md|yaml|toml|lock)|(?:[\w-]+/)+)`", text_of(page))
    alone = {path.name for path in (*ROOT.glob("policies/**/*.py"), *ROOT.glob("tests/policies/**/*.py"))}
    assert [name for name in named if name not in made_up | alone and not (ROOT / name).exists()] == []


# --- figures that are copied from the results ---------------------------------------------------------------------------

RESULTS = ROOT / "benchmarks/results"
SIMULATED = ("round-robin", "least-connections", "response-time", "power of two", "shortest queue")


def between(page: str, marker: str) -> str:
    (found,) = re.findall(rf"<!-- {marker}:begin -->\n(.*?)<!-- {marker}:end -->", text_of(page), re.DOTALL)
    return str(found)


def compared() -> str:
    """What was measured on which machine, and the table. Nothing before the first run."""
    file = RESULTS / "compare.md"
    if not file.is_file():
        return ""
    paragraphs = file.read_text("utf-8").split("\n\n")
    table = next(index for index, paragraph in enumerate(paragraphs) if paragraph.startswith("| "))
    link = "What each of them is, and every run: [compare.md](benchmarks/results/compare.md)."
    return "\n\n".join([*paragraphs[1 : table + 1], link]) + "\n"


def simulated() -> str:
    """Two of the tables, with the rows that a choice between strategies needs."""
    page = (RESULTS / "simulation.md").read_text("utf-8")
    parts = [page.split("\n\n")[1]]
    for title in ("Mean time over the central queue's", "One bad instance"):
        (rows,) = re.findall(rf"^## {title}\n\n((?:\|.*\n?)+)", page, re.MULTILINE)
        head, rule, *others = rows.splitlines()
        kept = [row for row in others if row.removeprefix("| ").startswith(SIMULATED)]
        parts.append("\n".join([f"| {title} {head.removeprefix('|').lstrip()}", rule, *kept]))
    return "\n\n".join(parts) + "\n"


def metrics_cost() -> str:
    """The sentences under the table."""
    (found,) = re.findall(r"^Metrics add .*\n", (RESULTS / "metrics-cost.md").read_text("utf-8"), re.MULTILINE)
    return str(found)


COPIES: Mapping[tuple[str, str], Any] = {
    ("README.md", "compare"): compared,
    ("README.md", "metrics-cost"): metrics_cost,
    ("docs/strategies.md", "simulation"): simulated,
}


@pytest.mark.parametrize(("page", "marker"), COPIES)
def test_figures_are_those_of_the_results(page: str, marker: str) -> None:
    assert between(page, marker) == COPIES[page, marker](), "python tests/test_readme.py copies them"


def copy() -> None:
    for (page, marker), made in COPIES.items():
        old = f"<!-- {marker}:begin -->\n{between(page, marker)}<!-- {marker}:end -->"
        new = f"<!-- {marker}:begin -->\n{made()}<!-- {marker}:end -->"
        (ROOT / page).write_text(text_of(page).replace(old, new), "utf-8")


if __name__ == "__main__":
    copy()
