"""Which cluster does a command act on, and what does `down` stop there?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swiftclaw import cli
from swiftclaw.cli.commands.up import Up
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster import cluster_record, controller, driver, local_cluster, processes, serve_apps
from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord
from swiftclaw.cli.ray_cluster.serve_apps import ServeApp
from swiftclaw.cli.undo import Undo

HERE, RECORDED, OTHER = "127.0.0.1:6379", "127.0.0.1:6380", "10.0.0.9:6379"


class Machine:
    """The Ray clusters that run, and the calls that a command made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.file = folder, folder / "cluster.yaml"
        self.running, self.with_swiftclaw = [HERE], {HERE, RECORDED, OTHER}
        self.started_from = folder / "elsewhere"
        self.calls: list[Any] = []
        self._connected = ""

        @contextlib.contextmanager
        def connected(address: str, auth_mode: str = "") -> Iterator[None]:
            self._connected = address
            yield

        monkeypatch.setattr(processes, "ray_addresses", lambda: self.running)
        monkeypatch.setattr(driver, "is_reachable", lambda address: address in [*self.running, OTHER])
        monkeypatch.setattr(driver, "connected", connected)
        monkeypatch.setattr(driver, "gcs_address", lambda: self._connected)
        monkeypatch.setattr(serve_apps, "statuses", self._statuses)
        monkeypatch.setattr(serve_apps, "stop", self._stop)
        monkeypatch.setattr(controller, "current", lambda: ({}, str(self.started_from)))
        monkeypatch.setattr(controller, "scale", self._scale)
        monkeypatch.setattr(local_cluster, "is_running", lambda record: True)
        monkeypatch.setattr(local_cluster, "stop", self._stop_ray)
        monkeypatch.chdir(folder)

    def _statuses(self) -> dict[str, ServeApp]:
        return {"swiftclaw": ServeApp("RUNNING", "")} if self._connected in self.with_swiftclaw else {}

    def _stop(self, recorded: set[str], timeout_s: float, shut_down_serve: bool, report: Any) -> list[str]:
        self.calls.append(("stop apps", self._connected, shut_down_serve))
        return []

    def _stop_ray(self, record: ClusterRecord, folder: Path) -> str:
        self.calls.append(("stop Ray", record.address))
        return ""

    def _scale(self, *_: Any) -> str:
        self.calls.append(("scale", self._connected))
        return "scaled"

    def record(self, address: str, folder: Path | None = None, *, started_ray: bool = False) -> None:
        state = (folder or self.folder) / ".swiftclaw"
        state.mkdir(parents=True)
        cluster_record.save(state, ClusterRecord(address, started_ray=started_ray))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_it_is_the_only_one_here(machine: Machine) -> None:
    assert driver.locate(machine.file).address == HERE


def test_a_named_cluster_is_joined_by_the_same_rule_as_the_one_here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("token", "disabled"):
        monkeypatch.setattr(driver, "auth_mode", lambda mode=mode: mode)
        assert driver.locate(machine.file).auth_mode == driver.locate(machine.file, HERE).auth_mode == mode


def test_ray_address_comes_before_the_one_here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", OTHER)
    assert driver.locate(machine.file).address == OTHER


@pytest.mark.parametrize("automatic", ["auto", "", "local"])
def test_auto_is_the_only_one_here(machine: Machine, monkeypatch: pytest.MonkeyPatch, automatic: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", automatic)
    assert driver.locate(machine.file).address == driver.locate(machine.file, "auto").address == HERE


def test_the_recorded_one_comes_before_both_while_it_runs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", OTHER)
    machine.record(RECORDED)
    machine.running = [HERE, RECORDED]
    assert driver.locate(machine.file).address == RECORDED
    machine.running = [HERE]
    assert driver.locate(machine.file).address == OTHER


def test_the_option_wins(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", RECORDED)
    machine.record(HERE)
    assert driver.locate(machine.file, OTHER).address == OTHER


def test_none_and_several_are_refused_with_what_to_do(machine: Machine) -> None:
    machine.running = [HERE, RECORDED]
    with pytest.raises(CommandFailed, match=rf"several Ray clusters .*\({HERE}, {RECORDED}\); choose one with --address"):
        driver.locate(machine.file)
    machine.running = []
    with pytest.raises(CommandFailed, match="no Ray cluster is running on this machine; start SwiftClaw with `swiftclaw up`"):
        driver.locate(machine.file)


def test_a_command_works_without_a_record_and_without_a_file(machine: Machine) -> None:
    assert cli.run(["scale", "shop", "--instances", "3"]) == 0
    assert cli.run(["scale", "shop", "--instances", "3", "--address", OTHER]) == 0
    assert machine.calls == [("scale", HERE), ("scale", OTHER)]


def test_down_removes_the_apps_of_serve_run_and_leaves_ray(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.started_from = machine.folder / "elsewhere" / ".."
    machine.started_from.parent.mkdir()
    assert cli.run(["down"]) == 0
    assert machine.calls == [("stop apps", HERE, False)]
    assert "Ray, which was not started by `up`, still runs" in capsys.readouterr().out


def test_down_leaves_a_swiftclaw_from_another_folder_alone_and_names_the_folder(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.record(HERE, machine.started_from, started_ray=True)
    assert cli.run(["down"]) == 1 and machine.calls == []
    refusal = capsys.readouterr().err
    assert str(machine.started_from) in refusal and f"down --address {HERE}" in refusal


def test_down_leaves_one_alone_whose_controller_does_not_answer(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent() -> None:
        raise CommandFailed("the Controller did not reply within 30 s")

    monkeypatch.setattr(controller, "current", silent)
    assert cli.run(["down"]) == 1 and machine.calls == []
    assert "does not answer" in capsys.readouterr().err
    assert cli.run(["down", "--address", HERE]) == 0 and machine.calls == [("stop apps", HERE, False)]


@pytest.mark.parametrize("named_by", ["option", "environment"])
def test_down_stops_what_up_started_from_another_folder_when_its_cluster_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    machine.record(HERE, machine.started_from, started_ray=True)
    if named_by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", HERE)
    assert cli.run(["down", *(["--address", HERE] if named_by == "option" else [])]) == 0
    assert machine.calls == [("stop apps", HERE, False), ("stop Ray", HERE)]


def test_down_finds_nothing_where_nothing_runs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.with_swiftclaw = set()
    assert cli.run(["down"]) == 0
    assert "SwiftClaw does not run on the Ray cluster at" in capsys.readouterr().out
    machine.running = []
    assert cli.run(["down"]) == 0
    assert "nothing to stop" in capsys.readouterr().out and machine.calls == []


def test_down_leaves_the_clusters_of_others_alone_where_ray_address_asks_for_an_own_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for machine.running in ([HERE], [HERE, RECORDED]):
        assert cli.run(["down"]) == 0
        assert "nothing to stop" in capsys.readouterr().out and machine.calls == []


def test_down_asks_which_when_there_are_several(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.running = [HERE, RECORDED]
    assert cli.run(["down"]) == 1
    assert "choose one with --address" in capsys.readouterr().err and machine.calls == []


def test_up_adopts_what_runs_without_a_record(tmp_path: Path) -> None:
    up = Up(None, tmp_path, 1.0, None)  # type: ignore[arg-type]
    undo = Undo()
    up._adopt(ClusterRecord(HERE, started_ray=False), undo)
    record = cluster_record.load(tmp_path)
    assert record is not None and (record.address, record.started_ray, record.started_serve) == (HERE, False, False)
    up._adopt(ClusterRecord(OTHER, started_ray=False), undo)
    assert cluster_record.load(tmp_path) == record and len(undo.steps) == 1
