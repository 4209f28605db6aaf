"""`swiftclaw scale`, and what `status` says of a count that was changed."""

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
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the Controller was asked for. It has been started from the folder."""
    calls: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def connected(address: str, auth_mode: str = "") -> Iterator[None]:
        calls.append((address, auth_mode))
        with contextlib.redirect_stdout(io.StringIO()):  # as the real one does, against Ray's chatter
            yield

    def scale(*arguments: Any) -> str:
        calls.append(arguments)
        if arguments[2] > 8:
            raise CommandFailed("the Controller rejected the request: 9 instances of shop in eu are out of bounds")
        return "shop in eu: 2 -> 5 instances (set by an operator)"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "connected", connected)
    monkeypatch.setattr(controller, "scale", scale)
    Path("cluster.yaml").write_text(FILE)
    Path(".swiftclaw").mkdir()
    cluster_record.save(
        tmp_path / ".swiftclaw", cluster_record.ClusterRecord("127.0.0.1:6379", started_ray=False, auth_mode="disabled")
    )
    return calls


def test_it_asks_the_controller_and_says_what_was_changed(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["scale", "shop", "--region", "eu", "--instances", "5"]) == 0
    assert asked == [("127.0.0.1:6379", "disabled"), ("shop", "eu", 5)]
    assert capsys.readouterr().out == "shop in eu: 2 -> 5 instances (set by an operator)\n"


def test_what_the_bounds_forbid_is_a_sentence_and_exit_1(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["scale", "shop", "--instances", "9"]) == 1
    assert asked[1:] == [("shop", None, 9)]
    assert "9 instances of shop in eu are out of bounds" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--instances", "-1"], ["--instances", "many"], []])
def test_a_count_that_is_none_is_wrong_usage(asked: list[Any], wrong: list[str]) -> None:
    assert cli.run(["scale", "shop", "--region", "eu", *wrong]) == 2
    assert asked == []


def test_where_nothing_was_started_it_says_so(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    cluster_record.remove(Path(".swiftclaw"))
    assert cli.run(["scale", "shop", "--region", "eu", "--instances", "3"]) == 1
    assert "SwiftClaw was not started from" in capsys.readouterr().err


def test_status_says_since_when_and_why_a_count_is_another() -> None:
    there = {
        "instances": 4,
        "healthy": 4,
        "priority": 1,
        "desired": 4,
        "actual": 4,
        "reason": "CPU percent 96",
        "at": time.time() - 65,
    }
    quiet = {"instances": 2, "healthy": 2, "priority": 1, "desired": 2, "actual": 2, "reason": "", "at": None}
    agent = {
        "name": "shop", "strategy": "round-robin", "session_affinity": False, "versions": [],
        "regions": {"eu": there, "us": quiet}, "requests": 0, "errors": 0,
    }  # fmt: skip
    console = Console(width=100, no_color=True)
    with console.capture() as shown:
        console.print(
            tables.status(
                {"agents": [agent], "gateways": [], "desired_gateways": 0, "apps": {}, "problems": {}, "warnings": []}
            )
        )
    assert "shop in eu: 4 instances, set 1m ago: CPU percent 96" in shown.get()
    assert "shop in us:" not in shown.get()
