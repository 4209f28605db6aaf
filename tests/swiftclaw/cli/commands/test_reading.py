"""`status` and `instances` against a fake admin port: with the replies of a Controller, served by a thread."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swiftclaw import cli
from swiftclaw.cli import admin_api
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.output import tables
from tests.swiftclaw.cli.commands.helpers import FakeAdmin, Stop, instance, status


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    server = FakeAdmin()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def test_status_names_agents_regions_and_gateways(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--admin", admin.url]) == 0
    shown = capsys.readouterr().out
    for expected in ("my-agent", "least-connections", "ap-southeast-1", "1 of 2", "127.0.0.1:8000", "31234 31235"):
        assert expected in shown


def test_status_shows_problems_warnings_and_missing_gateways(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/status"] |= {
        "problems": {"my-agent.v1.eu-west-1": "ModuleNotFoundError: No module named 'suport'"},
        "warnings": ["no Ray node carries a `region` label"],
        "gateways": [],
    }
    assert cli.run(["status", "--admin", admin.url]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "my-agent.v1.eu-west-1 cannot start: ModuleNotFoundError: No module named 'suport'" in shown
    assert "warning: no Ray node carries a `region` label" in shown
    assert "0 of 2 gateways are running" in shown


def test_status_shows_workers_beside_their_replicas(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    gateways = admin.answers["/api/status"]["gateways"]
    gateways += [{**gateways[0], "id": f"g1-{n}", "pid": 40000 + n, "worker_of": "g1"} for n in range(3)]
    assert cli.run(["status", "--admin", admin.url]) == 0
    shown = capsys.readouterr().out
    (row,) = [line.split() for line in shown.splitlines() if "127.0.0.1:8000" in line]
    assert row[:4] == ["127.0.0.1:8000", "us-east-1", "2", "3"]  # replicas, workers
    assert "40001" not in shown
    assert "WORKERS" in shown


def test_workers_do_not_stand_in_for_a_replica_that_is_missing(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    gateways = admin.answers["/api/status"]["gateways"]
    gateways[1] |= {"worker_of": "g1"}
    assert cli.run(["status", "--admin", admin.url]) == 0
    assert "1 of 2 gateways are running" in " ".join(capsys.readouterr().out.split())


def test_status_adds_up_scaling_bounds_over_the_regions(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    (agent,) = admin.answers["/api/status"]["agents"]
    for region in agent["regions"].values():
        region["bounds"] = [2, 10]
    assert cli.run(["status", "--admin", admin.url]) == 0
    count = len(agent["regions"])
    expected = f"scales between {2 * count} and {10 * count} instances over {count} regions (the bounds hold per region)"
    assert expected in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("options", [["status"], ["instances", "my-agent"], ["instances", "my-agent", "--health"]])
def test_tables_fit_80_columns_without_colour_or_cut_names(
    options: list[str], admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*options, "--admin", admin.url]) == 0
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert "\x1b" not in shown
    assert "…" not in shown
    assert "ap-southeast-1" in shown


def test_health_shows_the_reason_and_the_breaker(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    unhealthy = {"status": "unhealthy", "reason": "database", "checked_at": None}
    admin.answers["/api/agents/my-agent/instances"] = [instance(1, state="unhealthy", circuit="half-open", health=unhealthy)]
    assert cli.run(["instances", "my-agent", "--health", "--admin", admin.url]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["instance-1", "us-east-1", "unhealthy", "half-open", "never", "database"]


def test_an_unknown_value_is_a_dash(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/agents/my-agent/instances"] = [instance(1, p95_ms=None)]
    assert cli.run(["instances", "my-agent", "--admin", admin.url]) == 0
    assert " - " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (["status"], "/api/status"),
        (["instances", "my-agent"], "/api/agents/my-agent/instances"),
        (["instances", "my-agent", "--health"], "/api/agents/my-agent/instances"),
    ],
)
def test_json_is_exactly_what_the_admin_port_answers(
    options: list[str], path: str, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*options, "--json", "--admin", admin.url]) == 0
    assert json.loads(capsys.readouterr().out) == admin.answers[path]


def test_an_unknown_agent_is_answered_with_the_known_ones(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["instances", "my-agnet", "--admin", admin.url]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "there is no agent 'my-agnet' (known: my-agent); did you mean my-agent?\n"


def test_a_name_with_a_slash_cannot_reach_another_path(admin: FakeAdmin) -> None:
    with pytest.raises(CommandFailed, match="there is no agent"):
        admin_api.admin_port(admin.url).instances("my-agent/../../status?")


def test_an_unreachable_admin_port_is_one_sentence(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.close()
    assert cli.run(["status", "--admin", admin.url]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"cannot connect to the admin port at {admin.url} (connection refused)")
    assert error.count("\n") == 1


def test_another_server_on_the_port_is_one_sentence(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/status"] = "<html>"
    assert cli.run(["status", "--admin", admin.url]) == 1
    del admin.answers["/api/status"]
    assert cli.run(["status", "--admin", admin.url]) == 1
    assert capsys.readouterr().err.count("this is not SwiftClaw's admin port; pass the right one with --admin URL\n") == 2


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:port"])
def test_an_invalid_admin_url_is_a_usage_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--admin", url]) == 2
    assert "is not a URL" in capsys.readouterr().err


def test_the_admin_port_is_read_from_a_file_that_is_otherwise_wrong(tmp_path: Path) -> None:
    assert admin_api.admin_port(None).url == "http://127.0.0.1:8001"
    text = "applications: [{name: swiftclaw, args: {admin: {host: 0.0.0.0, port: 9001}, agnets: 3}}]"
    (tmp_path / "cluster.yaml").write_text(text)
    assert admin_api.admin_port(None).url == "http://127.0.0.1:9001"
    (tmp_path / "cluster.yaml").write_text("][")
    assert admin_api.admin_port(None).url == "http://127.0.0.1:8001"


def test_a_proxy_in_the_environment_is_not_used(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert admin_api.admin_port(admin.url).status()["desired_gateways"] == 2


def test_watch_survives_a_restart_of_the_controller(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([status(), AdminUnreachable("cannot connect to X (refused); hint"), status()])

    def fetch(_: admin_api.AdminApi) -> Any:
        answer = next(answers)
        if isinstance(answer, AdminUnreachable):
            raise answer
        return answer

    monkeypatch.setattr(admin_api.AdminApi, "status", fetch)
    monkeypatch.setattr("swiftclaw.cli.output.show.time.sleep", Stop(lambda: None, lambda: None))
    assert cli.run(["status", "--watch", "--admin", admin.url]) == 0
    shown = capsys.readouterr().out
    assert shown.count("least-connections") == 2
    assert "reconnecting … (cannot connect to X (refused))" in shown


def test_watched_json_is_one_line_per_reply(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swiftclaw.cli.output.show.time.sleep", Stop(lambda: None))
    assert cli.run(["instances", "my-agent", "--watch", "--json", "--admin", admin.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(json.loads(line)) for line in lines] == [7, 7]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.9, "59s"), (61, "1m"), (7200, "2h"), (90_000, "1d"), (86_400 * 400, "400d")]
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert tables.ago(seconds) == shown


def test_reading_commands_start_without_ray(admin: FakeAdmin) -> None:
    program = (
        "import sys; from swiftclaw import cli; code = cli.run(['status', '--admin', sys.argv[1]]);"
        "sys.exit(code or ('ray' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program, admin.url], capture_output=True).returncode == 0
