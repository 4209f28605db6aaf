"""A user's file or package named as one of SwiftClaw's is refused, before Ray imports the wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from swiftclaw import cli
from swiftclaw.cli.module_names import OURS, conflicts

ROOT = Path(__file__).parents[3]
FILE = """
applications:
  - name: swiftclaw
    import_path: deployments.app:build
    args: {agents: {my-agent: {agent: "shop:agent"}}}
"""


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_a_file_and_a_package_of_that_name_are_a_conflict_whoever_imports_them(tmp_path: Path, name: str, form: str) -> None:
    module = tmp_path / form.format(name)
    module.parent.mkdir(exist_ok=True)
    module.touch()
    (mistake,) = conflicts([tmp_path, tmp_path], ["shop:agent"])
    assert mistake.startswith(f"{module}: SwiftClaw has a package named {name!r}") and mistake.endswith("rename yours")


def test_a_folder_that_is_no_package_is_a_conflict_only_when_an_agent_lives_there(tmp_path: Path) -> None:
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "service.yaml").touch()
    assert conflicts([tmp_path], ["shop:agent"]) == []
    assert len(conflicts([tmp_path], ["deployments.shop:agent"])) == 1


def test_other_names_and_swiftclaws_own_folder_are_none(tmp_path: Path) -> None:
    for name in ("utils.py", "shop.py", "cluster.yaml", "policies.txt"):
        (tmp_path / name).touch()
    assert conflicts([tmp_path, ROOT], ["shop:agent", "examples.support:agent"]) == []


@pytest.mark.parametrize("command", ["check", "up"])
@pytest.mark.parametrize("where", ["beside the file", "in the current folder"])
def test_the_commands_refuse_it_with_the_file_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, where: str
) -> None:
    file, here = tmp_path / "project" / "cluster.yaml", tmp_path / "here"
    file.parent.mkdir()
    here.mkdir()
    file.write_text(FILE)
    module = (file.parent if where == "beside the file" else here) / "policies.py"
    module.write_text("RULES = 'mine'")
    monkeypatch.chdir(here)
    assert cli.run([command, str(file)]) == 2
    assert f"{module}: SwiftClaw has a package named 'policies'" in capsys.readouterr().err
