"""The command line: which kinds it draws from, what it refuses, and its exit status."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.campaign import record
from tests.campaign.__main__ import alone, main, new_folder, select
from tests.campaign.checker_cases.registry import AT
from tests.campaign.cluster import Settings
from tests.campaign.faults import FAULTS
from tests.campaign.made_up import kill_instance, sound_record
from tests.campaign.record import Lines, Record, write_facts
from tests.campaign.run import CampaignError


def write(made_up: Record, folder: Path) -> None:
    (folder / record.EXECUTIONS).mkdir()
    for one in made_up.executions:
        with (folder / record.EXECUTIONS / str(one.pid)).open("a") as file:
            place = f"{one.conversation or '-'} {one.turn}"
            file.write(f"{one.request} {one.pid} {one.code} {one.kind} {place} {one.at}\n")
    for name in (record.REQUESTS, record.COUNTED, record.FAULTS, record.SAMPLES, record.DEATHS, record.SIZES):
        lines = Lines(folder / f"{name}.jsonl")
        for entry in getattr(made_up, name):
            lines.write(entry)
        lines.close()
    made_up.facts.entries = made_up.entries
    write_facts(folder, made_up.facts)


def test_a_sound_record_has_exit_status_0_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(sound_record(), tmp_path)
    assert main(["--check", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["violations"] == []
    assert report["requests"] == len(sound_record().requests) + len(sound_record().counted)


def test_a_violation_has_exit_status_1_and_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up = sound_record()
    made_up.facts.orphans = ["4711 ray::ServeReplica"]
    write(made_up, tmp_path)
    assert main(["--check", str(tmp_path)]) == 1
    assert "4711 ray::ServeReplica" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--check", "/nowhere"], "/nowhere"),
        (["--faults", "kill_everything"], "neither a kind"),
        (["--folder", "/tmp/a-folder-whose-path-is-too-long"], "more than 24 characters"),
        (["--gap", "5"], "--gap"),
        (["--gap", "8,5"], "--gap"),
        (["--gap=-3,-1"], "--gap"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "nan"], "--minutes"),
        (["--rate", "-5"], "--rate"),
        (["--slack=-2"], "--slack"),
        (["--pairs", "7"], "--pairs"),
        (["--runs", "0"], "--runs"),
        (["--shrink"], "--replay"),
        (["--soak", "--check", "/nowhere"], "only one"),
    ],
)
def test_what_cannot_be_run_has_exit_status_2_and_a_reason(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert reason in capsys.readouterr().err


def test_kinds_are_selected_by_name_and_by_family() -> None:
    assert set(select("kill_instance,disk", network=False)) == {
        "kill_instance",
        *(name for name, kind in FAULTS.items() if kind.family == "disk"),
    }


def test_faults_of_the_network_need_a_host_for_each_region() -> None:
    families = {kind.family for kind in FAULTS.values()}
    assert {kind.family for kind in select("", network=False).values()} == families - {"network"}
    assert select("", network=True) == FAULTS


def test_settings_of_a_run_are_those_of_its_replay() -> None:
    settings = Settings(rate=25.0, gateways=2, network=True)
    again = Settings.from_facts(settings.facts)
    assert again == settings
    assert isinstance(again.gateways, int)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="exists"):
        new_folder(str(tmp_path))


@pytest.mark.parametrize("name", [record.REQUESTS, record.FAULTS, record.SAMPLES, record.DEATHS, record.SIZES])
def test_a_record_without_its_last_line_proves_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up = sound_record()
    kill_instance(made_up, 101, AT)
    write(made_up, tmp_path)
    file = tmp_path / f"{name}.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    assert main(["--check", str(tmp_path)]) == 1
    assert "[has-end]" in capsys.readouterr().out
    file.write_text("".join(lines)[:-20])
    assert main(["--check", str(tmp_path)]) == 2
    assert f"line {len(lines)}, is damaged" in capsys.readouterr().err


def test_an_execution_that_is_cut_in_the_middle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(sound_record(), tmp_path)
    file = next((tmp_path / record.EXECUTIONS).iterdir())
    file.write_text(file.read_text().rstrip()[:-30])
    assert main(["--check", str(tmp_path)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_two_campaigns_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with alone(), pytest.raises(CampaignError, match="another campaign"), alone():
        pass
    with alone():
        pass
