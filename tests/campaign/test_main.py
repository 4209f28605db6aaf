"""The command line: which kinds it draws from, what it refuses, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.campaign import record
from tests.campaign.__main__ import main, new_folder, select
from tests.campaign.cluster import Settings
from tests.campaign.faults import FAULTS
from tests.campaign.made_up import sound_record
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
