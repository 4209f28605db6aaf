"""The documentation describes the program: commands exist or run, examples answer, links resolve, figures are current."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml

from benchmarks import update_docs
from cluster.admin.app import AdminApp
from cluster.config import agent_from_block, parse
from policies.errors import STATUS
from swiftclaw import cli
from tests.cluster.stand_in import StandIn
from tests.deployments.conftest import DataPlane

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))]
ADDRESS = "127.0.0.1:8000"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of every `bash` block, once."""
    lines = [line for page in PAGES for block in fenced(page, "bash") for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(lines))


def starting_with(*programs: str) -> list[str]:
    return [command for command in commands() if command.startswith(programs)]


CURLS = starting_with("curl ")
SWIFTCLAW = starting_with(".venv/bin/swiftclaw ")
SERVE = starting_with(".venv/bin/serve ")
PYTHON = starting_with(".venv/bin/python ")
PYTEST = starting_with(".venv/bin/pytest ")
SCRIPTS = starting_with("scripts/")


def arguments(command: str) -> list[str]:
    """What the program receives: the words before a redirection."""
    return shlex.split(command.partition(" > ")[0])[1:]


# --- commands -----------------------------------------------------------------------------------------------------------


def test_every_command_belongs_to_a_test_below() -> None:
    assert sorted(commands()) == sorted([*CURLS, *SWIFTCLAW, *SERVE, *PYTHON, *PYTEST, *SCRIPTS])
    assert all((CURLS, SWIFTCLAW, SERVE, PYTHON, PYTEST, SCRIPTS))


def resolve(group: click.Command, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` name, and what is left of them. Raises KeyError for an unknown one."""
    while isinstance(group, click.Group):
        group, words = group.commands[words[0]], words[1:]
    return group, words


def parsed(group: click.Command, words: list[str]) -> dict[str, Any]:
    """The parameters as click converts and checks them; the command itself is not run. Raises ClickException."""
    command, rest = resolve(group, words)
    return command.make_context(command.name, rest).params


@pytest.mark.parametrize("command", SWIFTCLAW)
def test_swiftclaw_accepts_the_command(command: str) -> None:
    assert parsed(cli.cli, arguments(command)) is not None


def test_swiftclaw_rejects_what_does_not_exist() -> None:
    for line in ("status --no-such-option", "instances", "scale shop --instances many", "test failover shop"):
        with pytest.raises(click.ClickException):
            parsed(cli.cli, line.split())
    with pytest.raises(KeyError):
        parsed(cli.cli, ["no-such-command"])


def test_swiftclaw_check_accepts_the_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.run(["check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", SERVE)
def test_ray_serve_accepts_the_command(command: str) -> None:
    from ray.serve.scripts import cli as serve

    assert (ROOT / parsed(serve, arguments(command))["config_or_import_path"]).is_file()


@pytest.mark.parametrize("command", PYTHON)
def test_the_program_starts_and_accepts_the_options(command: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments(command), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("command", PYTEST)
def test_pytest_finds_the_files_and_markers(command: str, pytestconfig: pytest.Config) -> None:
    words = arguments(command)
    files = [word.removeprefix("--ignore=") for word in words if "/" in word or word == "tests"]
    markers = [word for flag, word in itertools.pairwise(words) if flag == "-m"]
    registered = {marker.partition(":")[0] for marker in pytestconfig.getini("markers")}
    assert files or markers
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert set(markers) <= registered


@pytest.mark.parametrize("command", SCRIPTS)
def test_the_script_is_a_program(command: str) -> None:
    script = ROOT / command.split()[0]
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-O", "extglob", "-n", script], check=True)


def test_the_build_server_runs_all_scripts() -> None:
    assert "exec scripts/test" in text_of(".ci/run")
    assert "\nscripts/lint\n" in text_of("scripts/test")


# --- commands and options that the text mentions --------------------------------------------------------------------------


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def mentions() -> list[tuple[str, str]]:
    """(page, words) of every `swiftclaw …` in a line of text."""
    found = [(page, words) for page in PAGES for words in re.findall(r"`swiftclaw ([^`\n]+)`", text_of(page))]
    assert found
    return found


@pytest.mark.parametrize(("page", "words"), dict.fromkeys(mentions()))
def test_a_mentioned_command_has_the_mentioned_options(page: str, words: str) -> None:
    command, rest = resolve(cli.cli, words.split())
    assert set(OPTION.findall(" ".join(rest))) <= options(command)


def test_the_table_of_commands_is_that_of_the_command_line() -> None:
    rows = re.findall(r"^\| `swiftclaw ([^`]*)` \| (.*) \|$", text_of("README.md"), re.MULTILINE)
    assert [words.split()[0] for words, _ in rows] == list(cli.COMMANDS)
    for words, description in rows:
        command, _ = resolve(cli.cli, words.split())
        assert set(OPTION.findall(description)) <= options(command), words


def test_the_common_options_are_those_of_every_reading_command() -> None:
    (sentence,) = re.findall(r"^.*Commands that read take .*$", text_of("README.md"), re.MULTILINE)
    for name in ("status", "instances", "metrics", "events"):
        assert set(OPTION.findall(sentence)) <= options(cli.COMMANDS[name])


# --- examples -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DataPlane]:
    """The example agent behind a gateway, in this process and without Ray."""
    from examples.support import agent, customers

    monkeypatch.setattr(agent, "name", "my-agent")
    plane = DataPlane(blocks={"my-agent": {"loadBalancing": {"sessionAffinity": {"enabled": True}}}})
    await plane.start()
    try:
        await plane.add(agent, 3)
        yield plane
    finally:
        await plane.stop()
        customers.clear()


def at(plane: DataPlane, example: str) -> str:
    return example.replace(ADDRESS, plane.url.removeprefix("http://"))


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_the_curl_commands_return_what_the_readme_says(plane: DataPlane) -> None:
    answers = [await output("bash", "-c", at(plane, command)) for command in CURLS]
    (reply,) = re.findall(r"^The first request returns `(.*?)`", text_of("README.md"), re.MULTILINE)
    assert json.loads(answers[0]) == json.loads(answers[1]) == json.loads(reply)
    assert answers[2].startswith("data: {") and answers[2].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("library", "answer"), [("openai", "order 1042"), ("websockets", "hello\n")])
async def test_the_python_clients_get_an_answer(plane: DataPlane, library: str, answer: str) -> None:
    (example,) = [block for block in fenced("README.md", "python") if f"from {library}" in block]
    assert answer in await output(sys.executable, "-c", at(plane, example))


class InProcessHandle:
    """A Serve handle to a gateway, without Serve: the gateway's own methods on the edge of a `DataPlane`."""

    def __init__(self, plane: DataPlane) -> None:
        from deployments.gateway.gateway import Gateway

        gateway: Any = SimpleNamespace(_edge=plane.edge)
        self.ask = SimpleNamespace(remote=partial(Gateway.ask, gateway))
        self.stream = SimpleNamespace(remote=partial(Gateway.stream, gateway))

    def options(self, **_: Any) -> InProcessHandle:
        return self


async def test_connect_gets_an_answer(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How `connect` itself finds a gateway is part of tests/integration/test_main_job.py."""
    import swiftclaw
    from swiftclaw.client import AgentHandle

    handle = InProcessHandle(plane)
    monkeypatch.setattr(swiftclaw, "connect", lambda agent: AgentHandle(agent, handle), raising=False)
    (example,) = [block for block in fenced("README.md", "python") if "from swiftclaw import connect" in block]
    names: dict[str, Any] = {}
    exec(example, names)
    await names["track_order"]()
    assert capsys.readouterr().out == "your order 1042 is being packed.\nyour order 1042 is being packed."


async def test_your_own_agent_answers_and_its_entry_is_valid() -> None:
    from swiftclaw.agent import Turn

    (example,) = [block for block in fenced("README.md", "python") if "import Agent\n" in block]
    names: dict[str, Any] = {}
    exec(example, names)
    assert await names["agent"].answer(Turn("hello", "s", None)) == "hello"
    (entry,) = fenced("README.md", "yaml")
    assert [block["agent"] for block in yaml.safe_load(entry)["agents"].values()] == ["shop:agent"]


async def test_the_example_of_the_page_about_models_keeps_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    from swiftclaw.agent import Turn
    from swiftclaw.models import model_for

    async def model(messages: list[dict[str, str]], temperature: float) -> str:
        return f"{[message['role'] for message in messages]} at {temperature}"

    (example,) = fenced("docs/models.md", "python")
    names: dict[str, Any] = {}
    exec(example, names)
    monkeypatch.setattr(names["agent"], "_model", model_for(model))
    reply = await names["agent"].answer(Turn([{"role": "user"}, {"role": "assistant"}, {"role": "user"}], "s", None))
    assert [piece async for piece in reply] == ["['system', 'user', 'assistant', 'user'] at 0.2"]


SETTINGS = [(page, block) for page in PAGES for block in fenced(page, "yaml") if not block.startswith("scrape_configs:")]


@pytest.mark.parametrize(("page", "fragment"), SETTINGS)
def test_a_fragment_of_cluster_yaml_is_valid(page: str, fragment: str) -> None:
    block = yaml.safe_load(fragment)
    if "applications" in block:  # the whole file
        (block,) = (application["args"] for application in block["applications"])
    if not {"agents", "gateways", "http"} & set(block):  # a block of an agent
        agent_from_block("my-agent", {"agent": "m:agent", **block}, ROOT)
        return
    parse({"agents": {"my-agent": {"agent": "m:agent"}}, **block}, ROOT)


# --- tables, links, names -------------------------------------------------------------------------------------------------


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


def test_the_admin_ports_paths_are_its_routes(tmp_path: Path) -> None:
    routes = {getattr(route, "path", "") for route in AdminApp(StandIn(tmp_path, {}).view).app().routes}
    (table,) = re.findall(r"^\| admin port .*?\n\n", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"(/(?:metrics|api|dashboard)[^` ]*)`", table)) == routes


async def test_the_public_ports_paths_are_served(plane: DataPlane) -> None:
    (table,) = re.findall(r"^\| public port .*?\n\n", text_of("README.md"), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"`(GET|POST) (/[^` ]+)`", table)
    assert len(rows) == 5
    for method, path in rows:
        body = (
            {"message": "hello"}
            if path.startswith("/agents")
            else {"model": "my-agent", "messages": [{"role": "user", "content": "hello"}]}
        )
        async with plane.client.request(
            method, path.replace("{agent}", "my-agent"), json=body if method == "POST" else None
        ) as answer:
            assert answer.status == 200, (path, await answer.text())


@pytest.mark.parametrize("page", PAGES)
def test_an_error_has_the_status_of_the_table(page: str) -> None:
    for status, kind in re.findall(r"\b([45]\d\d)`? `?([a-z]+_[a-z_]+|overloaded)\b", text_of(page)):
        assert (kind, int(status)) in {(error.type, code) for error, code in STATUS.items()}


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(name) if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    of_users = {"shop.py", "policies.py", "cluster.py"}
    made_up = of_users | {"policies/strategies/power_of_two.py", "tests/policies/strategies/test_power_of_two.py"}
    named = re.findall(r"`((?:\.?[\w-]+/)*[\w.-]+\.(?:py|md|yaml|toml|lock)|(?:[\w-]+/)+)`", text_of(page))
    packages = ("policies", "cluster", "deployments", "swiftclaw")
    folders = {f"{path.name}/" for package in packages for path in (ROOT / package).rglob("*") if path.is_dir()}
    alone = {path.name for folder in ("policies", "tests/policies", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")}
    assert [name for name in named if name not in made_up | alone | folders and not (ROOT / name).exists()] == []


def test_the_readme_stays_short() -> None:
    assert len(text_of("README.md").splitlines()) < 250


@pytest.mark.parametrize(("page", "marker"), update_docs.BLOCKS)
def test_figures_are_those_of_the_results(page: str, marker: str) -> None:
    assert update_docs.block(page, marker) == update_docs.BLOCKS[page, marker](), "run benchmarks/update_docs.py"
