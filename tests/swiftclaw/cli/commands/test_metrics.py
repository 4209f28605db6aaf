"""`metrics`, `events` and `dashboard` against a fake admin port: with the replies of a Controller, served by a thread."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swiftclaw import cli
from swiftclaw.cli import admin_api
from swiftclaw.cli.commands.dashboard import VIEWS, open_in_window
from swiftclaw.cli.commands.metrics import BAR, METRICS
from swiftclaw.cli.errors import AdminUnreachable
from swiftclaw.cli.output import tables
from tests.swiftclaw.cli.commands.helpers import FakeAdmin, Stop, instance

ROOT = Path(__file__).parents[4]


@pytest.fixture
def admin() -> Any:
    server = FakeAdmin()
    regions = ["us-east-1"] * 3 + ["eu-west-1"] * 2 + ["ap-southeast-1"] * 2
    rows = [instance(n, region, p99_ms=5000.0, connections=n) for n, region in enumerate(regions, 1)]
    server.answers["/api/agents/my-agent/instances"] = rows
    server.answers["/api/agents/my-agent/load"] = {
        "agent": "my-agent", "window_s": 60, "total": 700,
        "instances": [{**row, "requests": 25 * n, "share": 100 * n / 28} for n, row in enumerate(rows, 1)],
    }  # fmt: skip
    yield server
    server.close()


@pytest.fixture(autouse=True)
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def event(number: int, kind: str = "health", message: str = "instance-1 is unhealthy: database") -> dict[str, Any]:
    return {
        "id": number, "at": 1_700_000_000.0 + number, "kind": kind, "message": message, "agent": "my-agent",
        "instance": "instance-1", "version": "v1", "region": "us-east-1", "details": {},
    }  # fmt: skip


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_fits_80_columns_without_colour_or_cut_names(
    metric: str, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["metrics", "my-agent", "--metric", metric, "--admin", admin.url]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{metric}: ")
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert "\x1b" not in shown and "…" not in shown
    assert shown.count("ap-southeast-1") == 2 and "█" in shown


def test_bars_are_as_long_as_the_numbers_and_the_longest_is_the_largest(
    admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["metrics", "my-agent", "--admin", admin.url]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("instance-")]
    lengths = [row.count("█") for row in rows]
    assert lengths == sorted(lengths) and lengths[-1] == BAR
    assert rows[-1].split()[-3:] == ["25.0", "%", "175"]


@pytest.mark.parametrize(
    ("value", "largest", "shown"), [(0, 0, ""), (0, 9, ""), (9, 9, "█" * 22), (0.001, 9, "▏"), (1, 2, "█" * 11)]
)
def test_only_a_value_of_nothing_has_no_bar(value: float, largest: float, shown: str) -> None:
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(tables.bar(value, largest, BAR, "cyan"))
    assert captured.get().strip() == shown


def test_an_instance_without_requests_has_no_times(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    unknown: dict[str, Any] = {"mean_ms": None, "p50_ms": None, "p95_ms": None, "p99_ms": None}
    admin.answers["/api/agents/my-agent/instances"] = [instance(1, **unknown)]
    assert cli.run(["metrics", "my-agent", "--metric", "response-times", "--admin", admin.url]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["instance-1", "us-east-1", "v1", "-", "-", "-", "-"]


@pytest.mark.parametrize(("metric", "path"), [("load-distribution", "load"), ("errors", "instances")])
def test_json_is_exactly_what_the_admin_port_answers(
    metric: str, path: str, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["metrics", "my-agent", "--metric", metric, "--json", "--admin", admin.url]) == 0
    assert json.loads(capsys.readouterr().out) == admin.answers[f"/api/agents/my-agent/{path}"]


@pytest.mark.parametrize("command", [["metrics", "my-agnet"], ["dashboard", "my-agnet"], ["events", "--agent", "my-agnet"]])
def test_an_unknown_agent_is_one_sentence(command: list[str], admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command, "--admin", admin.url]) == 1
    assert "did you mean my-agent?" in capsys.readouterr().err


# --- events ---------------------------------------------------------------------------------------------------------


def test_events_are_a_line_each(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/events?limit=20"] = [event(1), event(2, "config", "my-agent: loadBalancing.strategy is geographic")]
    assert cli.run(["events", "--admin", admin.url]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first[8:] == " health   my-agent: instance-1 is unhealthy: database"
    assert second[8:] == " config   my-agent: loadBalancing.strategy is geographic"


def test_options_become_the_query(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/events?agent=my-agent&kind=health&limit=5"] = [event(1)]
    options = ["--agent", "my-agent", "--kind", "health", "--limit", "5", "--json"]
    assert cli.run(["events", *options, "--admin", admin.url]) == 0
    assert json.loads(capsys.readouterr().out) == [event(1)]


def test_an_empty_log_is_reported(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/events?limit=20"] = []
    assert cli.run(["events", "--admin", admin.url]) == 0
    assert capsys.readouterr().out == "no events since the Controller started\n"


def test_following_shows_each_event_once_and_survives_a_restart_of_the_controller(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([[event(1)], AdminUnreachable("cannot connect to X (refused); hint"), [], [event(2, message="back")]])
    positions = []

    def fetch(_: admin_api.AdminApi, **query: Any) -> Any:
        positions.append(query.get("after"))
        answer = next(answers)
        if isinstance(answer, AdminUnreachable):
            raise answer
        return answer

    monkeypatch.setattr(admin_api.AdminApi, "events", fetch)
    monkeypatch.setattr("swiftclaw.cli.output.show.time.sleep", Stop(*[lambda: None] * 3))
    assert cli.run(["events", "--follow", "--json", "--admin", admin.url]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["message"] for line in printed.out.splitlines()] == [event(1)["message"], "back"]
    assert printed.err == "reconnecting … (cannot connect to X (refused))\n"
    assert positions == [None, 1, 1, 1]


# --- dashboard ------------------------------------------------------------------------------------------------------


def test_without_a_terminal_the_address_is_printed_and_nothing_opened(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webbrowser, "get", lambda: pytest.fail("looked for a browser"))
    assert cli.run(["dashboard", "my-agent", "--view", "latency", "--admin", admin.url]) == 0
    assert capsys.readouterr().out == f"{admin.url}/dashboard?agent=my-agent&view=latency\n"


@pytest.mark.parametrize(("kind", "opens"), [(webbrowser.BackgroundBrowser, True), (webbrowser.GenericBrowser, False)])
def test_only_a_browser_with_a_window_is_opened(kind: Any, opens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(kind, "open", lambda _, url: opened.append(url))
    monkeypatch.setattr(webbrowser, "get", lambda: kind("some-browser"))
    open_in_window("http://x/dashboard")
    assert opened == (["http://x/dashboard"] if opens else [])


def test_its_views_are_the_views_of_the_page() -> None:
    (listed,) = [
        line
        for line in (ROOT / "cluster/admin/dashboard/views.js").read_text("utf-8").splitlines()
        if line.startswith("export const VIEWS")
    ]
    assert tuple(part.split(":")[0].strip() for part in listed.split("{")[1].split("}")[0].split(",")) == VIEWS
