"""The command line as a whole: exit status, error sentences, `check`, and what `up` and `down` refuse before they start Ray."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from swiftclaw import cli
from swiftclaw.cli.ray_cluster import cluster_record, ports, processes

GOOD = """
applications:
  - name: swiftclaw
    import_path: deployments.app:build
    args:
      agents:
        my-agent:
          agent: examples.support:agent
          regions: {us-east-1: {instances: 3}, eu-west-1: {instances: 2}}
          loadBalancing: {strategy: round-robin}
"""
BAD = GOOD.replace("strategy: round-robin", "strategy: round-robbin").replace("instances: 3", "instanses: 3")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("SWIFTCLAW_DEBUG", raising=False)
    (tmp_path / "cluster.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    return tmp_path


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_every_command_has_help_that_fits_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"] if command else ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: swiftclaw" in shown
    assert "..." not in shown.replace("[ARGS]...", "")  # no summary is truncated


@pytest.mark.parametrize("arguments", [["bogus"], ["status", "--bogus"], ["instances"], ["up", "--timeout", "soon"]])
def test_a_usage_error_is_2(arguments: list[str]) -> None:
    assert cli.run(arguments) == 2


def test_an_unexpected_error_is_one_sentence_and_never_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def broken() -> None:
        raise RuntimeError("the first line\nthe second")

    monkeypatch.setitem(cli.cli.commands, "broken", broken)
    assert cli.run(["broken"]) == 1
    expected = "unexpected RuntimeError: the first line (set SWIFTCLAW_DEBUG=1 to see the traceback)\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setenv("SWIFTCLAW_DEBUG", "1")
    assert cli.run(["broken"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def long() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.cli.commands, "long", long)
    assert cli.run(["long"]) == 1
    assert capsys.readouterr().err.strip() == "interrupted"


def test_check_summarizes_a_valid_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "cluster.yaml is valid: 1 agent, 5 instances in 2 regions, 1 gateway\n"


def test_reading_commands_do_not_import_ray() -> None:
    """Importing Ray takes seconds. In a process of its own, because other tests import it."""
    script = "import sys; from swiftclaw import cli; cli.run(['check', 'nowhere.yaml']); print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_check_reports_a_valid_file_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "cluster.yaml", "valid": True, "mistakes": [], "warnings": []}


def test_check_warns_of_a_certificate_that_is_not_on_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edges = "    args:\n      gateways: [{tls: {cert: cert.pem, key: key.pem}}]\n"
    (folder / "cluster.yaml").write_text(GOOD.replace("    args:\n", edges))
    (folder / "key.pem").touch()
    assert cli.run(["check"]) == 0
    warning = f"gateways[0].tls.cert: there is no file {folder / 'cert.pem'} on this machine"
    assert capsys.readouterr().err == f"warning: {warning}\n"
    assert cli.run(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [warning]


@pytest.mark.parametrize("command", ["check", "up"])
def test_mistakes_are_listed_one_per_line_and_nothing_is_started(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([command, "bad.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert any("did you mean round-robin?" in line for line in lines)
    assert not (folder / ".swiftclaw").exists()
    assert cli.run(["check", "bad.yaml", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["mistakes"] == lines


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_missing_file_is_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_up_refuses_a_port_in_use_before_ray_is_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "ray_addresses", list)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (folder / "cluster.yaml").write_text(GOOD.replace("args:", f"args:\n      gateways: [{{port: {port}}}]"))
        assert cli.run(["up"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"port {port} on 127.0.0.1 is in use")
    assert "gateways[0].port" in error
    assert cluster_record.load(folder / ".swiftclaw") is None


def test_up_refuses_to_choose_between_ray_clusters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processes, "ray_addresses", lambda: ["127.0.0.1:1", "127.0.0.1:2"])
    assert cli.run(["up"]) == 1
    assert "several Ray clusters are running on this machine (127.0.0.1:1, 127.0.0.1:2)" in capsys.readouterr().err


def test_up_reports_that_the_given_ray_cluster_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["up", "--address", "127.0.0.1:1"]) == 1
    assert "no Ray cluster is reachable at 127.0.0.1:1" in capsys.readouterr().err


def test_down_with_nothing_to_stop_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["down"]) == 0
    assert capsys.readouterr().out.startswith("nothing to stop")


def test_a_second_up_at_the_same_time_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cluster_record.locked(folder / ".swiftclaw"):
        assert cli.run(["up"]) == 1
    assert "another `swiftclaw up` or `down` is using" in capsys.readouterr().err


def test_a_free_port_is_the_preferred_one_unless_it_is_used_or_reserved() -> None:
    with socket.create_server(("", 0)) as taken:
        used = taken.getsockname()[1]
        assert ports.free(used, ()) != used
    assert ports.free(used, ()) == used
    assert ports.free(used, {used}) != used
