"""`swiftclaw scale`, and what `status` shows of a changed count."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swiftclaw import cli
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.output import tables
from swiftclaw.cli.ray_cluster import cluster_record, controller, driver

FILE = """
proxy_location: Disabled
applications:
  - name: swiftclaw
    import_path: deployments.app:build
    args: {agents: {shop: {agent: "shop:agent", regions: {eu: {instances: 2}}}}}
"""


@pytest.fixture
def calls_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls to the Controller. `up` has recorded a cluster in the current folder."""
    calls: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def connected(address: str, auth_mode: str = "") -> Iterator[None]:
        calls.append((address, auth_mode))
        with contextlib.redirect_stdout(io.StringIO()):  # as the real one does, to hide Ray's output
            yield

    def scale(*arguments: Any) -> str:
        calls.append(arguments)
        if arguments[2] > 8:
            raise CommandFailed("the Controller rejected the request: 9 instances of shop in eu are out of bounds")
        return "shop in eu: 2 -> 5 instances (set by an operator)"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "connected", connected)
    monkeypatch.setattr(driver, "is_reachable", lambda address: True)
    monkeypatch.setattr(controller, "scale", scale)
    Path("cluster.yaml").write_text(FILE)
    Path(".swiftclaw").mkdir()
    cluster_record.save(
        tmp_path / ".swiftclaw", cluster_record.ClusterRecord("127.0.0.1:6379", started_ray=False, auth_mode="disabled")
    )
    return calls


def test_it_calls_the_controller_and_prints_the_change(calls_made: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["scale", "shop", "--region", "eu", "--instances", "5"]) == 0
    assert calls_made == [("127.0.0.1:6379", "disabled"), ("shop", "eu", 5)]
    assert capsys.readouterr().out == "shop in eu: 2 -> 5 instances (set by an operator)\n"


def test_a_count_out_of_bounds_is_a_sentence_and_exit_1(calls_made: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["scale", "shop", "--instances", "9"]) == 1
    assert calls_made[1:] == [("shop", None, 9)]
    assert "9 instances of shop in eu are out of bounds" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--instances", "-1"], ["--instances", "many"], []])
def test_an_invalid_count_is_wrong_usage(calls_made: list[Any], wrong: list[str]) -> None:
    assert cli.run(["scale", "shop", "--region", "eu", *wrong]) == 2
    assert calls_made == []


def test_without_a_running_cluster_it_says_how_to_start_or_name_one(
    calls_made: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_record.remove(Path(".swiftclaw"))
    assert cli.run(["scale", "shop", "--region", "eu", "--instances", "3"]) == 1
    assert "no Ray cluster is running on this machine; start SwiftClaw with `swiftclaw up`" in capsys.readouterr().err


def test_status_shows_since_when_and_why_a_count_differs() -> None:
    scaled = {
        "instances": 4,
        "healthy": 4,
        "priority": 1,
        "desired": 4,
        "actual": 4,
        "reason": "CPU percent 96",
        "at": time.time() - 65,
    }
    as_configured = {"instances": 2, "healthy": 2, "priority": 1, "desired": 2, "actual": 2, "reason": "", "at": None}
    agent = {
        "name": "shop", "strategy": "round-robin", "session_affinity": False, "versions": [],
        "regions": {"eu": scaled, "us": as_configured}, "requests": 0, "errors": 0,
    }  # fmt: skip
    console = Console(width=100, no_color=True)
    with console.capture() as shown:
        console.print(
            tables.status(
                {"agents": [agent], "gateways": [], "desired_gateways": 0, "apps": {}, "problems": {}, "warnings": []}
            )
        )
    assert "shop in eu: 4 instances for 1m (CPU percent 96)" in shown.get()
    assert "shop in us:" not in shown.get()
