"""`status` and `instances` against a fake admin port: what the Controller would answer, served by a thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from swiftclaw import cli
from swiftclaw.cli import admin_api
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.output import show, tables


def instance(number: int, region: str = "us-east-1", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"instance-{number}", "version": "v1", "region": region, "node": "ab12", "state": "healthy",
        "health": {"status": "healthy", "reason": "", "checked_at": time.time() - 3}, "circuit": "closed", "weight": 1,
        "connections": 2, "active_connections": 2, "requests": 123_456, "errors": 7, "error_rate": 0.006, "mean_ms": 12.3,
        "p50_ms": 11.0, "p95_ms": 1234.5, "cpu": 3.0, "uptime_s": 7_300.0, "pid": 4242, **changes,
    }  # fmt: skip


def agent(name: str, *regions: tuple[str, int, int]) -> dict[str, Any]:
    """`regions`: (name, wanted, healthy)."""
    return {
        "name": name, "strategy": "least-connections", "session_affinity": False,
        "versions": [{"version": "v1", "role": "stable", "weight": 100, "instances": 7}],
        "regions": {region: {"instances": wanted, "healthy": healthy, "priority": 1} for region, wanted, healthy in regions},
        "requests": 1_234_567, "errors": 12,
    }  # fmt: skip


def status() -> dict[str, Any]:
    edge = {"region": "us-east-1", "host": "127.0.0.1", "port": 8000, "node": "ab12"}
    return {
        "agents": [agent("my-agent", ("us-east-1", 3, 3), ("eu-west-1", 2, 2), ("ap-southeast-1", 2, 1))],
        "gateways": [{"id": "g1", "pid": 31234, **edge}, {"id": "g2", "pid": 31235, **edge}],
        "desired_gateways": 2,
        "apps": {"swiftclaw": {"status": "RUNNING", "message": ""}},
        "problems": {},
        "warnings": [],
    }


class FakeAdmin:
    """`answers`: path -> JSON, or text as it is; every other path is 404."""

    def __init__(self) -> None:
        regions = ["us-east-1"] * 3 + ["eu-west-1"] * 2 + ["ap-southeast-1"] * 2
        answers: dict[str, Any] = {
            "/api/status": status(),
            "/api/agents": status()["agents"],
            "/api/agents/my-agent/instances": [instance(n, region) for n, region in enumerate(regions, 1)],
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path, {"error": {"type": "unknown_agent"}})
                self.send_response(200 if self.path in answers else 404)
                self.end_headers()
                self.wfile.write((answer if isinstance(answer, str) else json.dumps(answer)).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.answers = answers
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


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


def test_status_says_what_cannot_start_and_what_is_odd(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/status"] |= {
        "problems": {"my-agent.v1.eu-west-1": "ModuleNotFoundError: No module named 'suport'"},
        "warnings": ["no Ray node carries a `region` label"],
        "gateways": [],
    }
    assert cli.run(["status", "--admin", admin.url]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "my-agent.v1.eu-west-1 cannot start: ModuleNotFoundError: No module named 'suport'" in shown
    assert "warning: no Ray node carries a `region` label" in shown
    assert "0 of 2 gateways are there" in shown


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
    sick = {"status": "unhealthy", "reason": "database", "checked_at": None}
    admin.answers["/api/agents/my-agent/instances"] = [instance(1, state="unhealthy", circuit="half-open", health=sick)]
    assert cli.run(["instances", "my-agent", "--health", "--admin", admin.url]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["instance-1", "us-east-1", "unhealthy", "half-open", "never", "database"]


def test_a_value_that_is_not_known_yet_is_a_dash(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
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
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "there is no agent 'my-agnet' (known: my-agent); did you mean my-agent?\n"


def test_a_name_with_a_slash_is_no_other_path(admin: FakeAdmin) -> None:
    with pytest.raises(CommandFailed, match="there is no agent"):
        admin_api.find(admin.url).instances("my-agent/../../status?")


def test_nobody_there_is_one_sentence(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.close()
    assert cli.run(["status", "--admin", admin.url]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nobody answers on the admin port {admin.url} (connection refused)")
    assert said.count("\n") == 1


def test_somebody_else_there_is_one_sentence(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["/api/status"] = "<html>"
    assert cli.run(["status", "--admin", admin.url]) == 1
    del admin.answers["/api/status"]
    assert cli.run(["status", "--admin", admin.url]) == 1
    assert capsys.readouterr().err.count("that is not SwiftClaw's admin port\n") == 2


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:port"])
def test_an_admin_url_that_is_none_is_a_usage_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--admin", url]) == 2
    assert "is not a URL" in capsys.readouterr().err


def test_the_admin_port_is_that_of_the_file_here_even_if_the_rest_is_wrong(tmp_path: Path) -> None:
    assert admin_api.find(None).url == "http://127.0.0.1:8001"
    text = "applications: [{name: swiftclaw, args: {admin: {host: 0.0.0.0, port: 9001}, agnets: 3}}]"
    (tmp_path / "cluster.yaml").write_text(text)
    assert admin_api.find(None).url == "http://127.0.0.1:9001"
    (tmp_path / "cluster.yaml").write_text("][")
    assert admin_api.find(None).url == "http://127.0.0.1:8001"


def test_an_environment_with_a_proxy_is_not_asked(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert admin_api.find(admin.url).status()["desired_gateways"] == 2


class Stop:
    """`time.sleep` that is Ctrl-C at last; before, `then` happens."""

    def __init__(self, *then: Any) -> None:
        self.then = list(then)

    def __call__(self, _: float) -> None:
        if not self.then:
            raise KeyboardInterrupt
        self.then.pop(0)()


def test_watch_survives_a_controller_that_restarts(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([status(), AdminUnreachable("nobody answers on X (refused); hint"), status()])

    def fetch(_: admin_api.AdminApi) -> Any:
        answer = next(answers)
        if isinstance(answer, AdminUnreachable):
            raise answer
        return answer

    monkeypatch.setattr(admin_api.AdminApi, "status", fetch)
    monkeypatch.setattr(show.time, "sleep", Stop(lambda: None, lambda: None))
    assert cli.run(["status", "--watch", "--admin", admin.url]) == 0
    shown = capsys.readouterr().out
    assert shown.count("least-connections") == 2
    assert "reconnecting … (nobody answers on X (refused))" in shown


def test_watched_json_is_one_line_each_time(
    admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show.time, "sleep", Stop(lambda: None))
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
