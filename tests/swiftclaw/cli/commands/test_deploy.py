"""`deploy`, `promote`, `rollback` and `status AGENT`: what they request, and how they wait for the rollout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from cluster.config import ConfigError, parse
from swiftclaw.cli import cli
from swiftclaw.cli.commands.deploy import block_of, split_regions
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed
from swiftclaw.cli.output import tables
from swiftclaw.cli.progress import rollout as rollout_progress
from swiftclaw.cli.progress.reporter import ProgressReporter
from swiftclaw.cli.progress.rollout import RolloutStep, Status, gaining_traffic, losing_traffic, starting

SHOP = {"agent": "shop:agent", "limits": {"maxConnections": 7}, "loadBalancing": {"strategy": "round-robin"}}
FILE = {"agents": {"shop": SHOP}}


def version(name: str, role: str = "stable", **figures: Any) -> dict[str, Any]:
    return {
        "version": name, "role": role, "weight": 100, "instances": 3, "desired": 3, "healthy": 3,
        "requests": 10, "error_rate": 0.0, "p50_ms": 1.0, "p95_ms": 2.0, **figures,
    }  # fmt: skip


def status(*versions: dict[str, Any], current: bool = True, **rollout: Any) -> dict[str, Any]:
    idle = {"stable": "v1", "canary": None, "percent": 0, "target": 0, "paused": False, "note": "", "last": "", "analysis": ""}
    one = {
        "name": "shop", "versions": list(versions) or [version("v1")], "rollout": {**idle, **rollout},
        "regions": {"us": {"instances": 3, "healthy": 3}},
    }  # fmt: skip
    return {"agents": [one], "gateways": [{"current": current}], "problems": {}}


def beside(percent: float, target: float, **rollout: Any) -> dict[str, Any]:
    canary = version("v2", "canary", healthy=1, desired=2)
    return status(version("v1"), canary, canary="v2", percent=percent, target=target, **rollout)


def test_a_canary_is_done_when_every_gateway_has_the_new_share() -> None:
    assert (
        gaining_traffic(beside(0, 10), "shop", "v2", 10).line
        == "waiting to give v2 10 % of the traffic: 1 of 2 instances healthy"
    )
    waiting = beside(10, 10)
    waiting["gateways"][0]["current"] = False
    line = "v2 receives 10 % of the traffic to shop"
    assert gaining_traffic(waiting, "shop", "v2", 10) == RolloutStep(f"{line}; 1 of 1 gateways not updated yet")
    assert gaining_traffic(beside(10, 10), "shop", "v2", 10) == RolloutStep(line, done=True)


def test_a_canary_that_the_analysis_raised_is_done_and_one_that_stays_below_has_failed() -> None:
    assert gaining_traffic(beside(25, 25), "shop", "v2", 10).done
    stuck = gaining_traffic(beside(10, 10, note="stays at 10 % of the traffic: not ready"), "shop", "v2", 50)
    assert stuck == RolloutStep("v2 of shop stays at 10 % of the traffic: not ready", failed=True)


def test_a_version_that_was_rolled_back_has_failed_with_the_reason() -> None:
    reason = "v2 was rolled back: unhealthy"
    assert gaining_traffic(status(last=reason), "shop", "v2", 10) == RolloutStep(reason, failed=True)


def test_taking_over_is_done_when_the_old_one_has_drained() -> None:
    draining = status(version("v1", "leaving", instances=2), version("v2"), stable="v2")
    assert gaining_traffic(draining, "shop", "v2", 100).line == "v2 receives all traffic to shop; draining v1 (2 left)"
    assert gaining_traffic(status(version("v2"), stable="v2"), "shop", "v2", 100).done


def test_a_rollback_is_done_when_the_version_is_gone() -> None:
    draining = status(version("v1"), version("v2", "leaving", instances=1))
    assert losing_traffic(draining, "shop", "v2").line == "v1 receives all traffic to shop; draining v2 (1 left)"
    assert losing_traffic(status(), "shop", "v2").done


def test_an_agent_that_starts_is_done_when_all_are_healthy_and_failed_when_it_cannot_start() -> None:
    assert starting(status(), "shop").done
    assert starting({**status(), "problems": {"shop.v1.us": "no module"}}, "shop").failed
    assert not starting({**status(), "agents": []}, "shop").done


class Replies:
    """An admin port with a reply for each poll; None: unreachable."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)

    def status(self) -> dict[str, Any]:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply is None:
            raise AdminUnreachable("cannot connect")
        status: dict[str, Any] = reply
        return status


def followed(*replies: Any, timeout_s: float = 5.0) -> str:
    def step_of(status: Status) -> RolloutStep:
        return gaining_traffic(status, "shop", "v2", 10)

    with ProgressReporter(Console(quiet=True)) as reporter:
        return rollout_progress.wait(Replies(*replies), step_of, reporter, timeout_s)  # type: ignore[arg-type]


def test_waiting_continues_while_the_controller_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_progress, "POLL_S", 0.01)
    assert followed(beside(0, 10), None, beside(10, 10)) == "v2 receives 10 % of the traffic to shop"


def test_a_rollout_that_takes_too_long_fails_the_command_but_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_progress, "POLL_S", 0.01)
    with pytest.raises(
        CommandFailed, match="not finished after 0 s; the rollout continues in the background: waiting to give v2"
    ):
        followed(beside(0, 10), timeout_s=0)


# --- requests --------------------------------------------------------------------------------------------------


def test_a_config_wins_over_the_file_and_adds_to_it(tmp_path: Path) -> None:
    config = tmp_path / "shop.json"
    config.write_text(json.dumps({"loadBalancing": {"strategy": "least-connections", "healthCheck": {"interval": "3s"}}}))
    block = block_of(parse(FILE, tmp_path), "shop", config)
    assert block["loadBalancing"] == {"strategy": "least-connections"} and block["limits"] == {"maxConnections": 7}
    assert block["healthCheck"] == {"interval": 3} and block["agent"] == "shop:agent"


def test_a_config_may_name_the_regions_of_the_file(tmp_path: Path) -> None:
    regions = {"us-east-1": {"instances": 3}, "eu-west-1": {}}
    config = tmp_path / "geo.json"
    config.write_text(json.dumps({"loadBalancing": {"strategy": "geographic", "regions": ["eu-west-1", "us-east-1"]}}))
    block = block_of(parse({"agents": {"shop": {**SHOP, "regions": regions}}}, tmp_path), "shop", config)
    assert block["loadBalancing"]["regions"] == ["eu-west-1", "us-east-1"]
    assert block["regions"]["us-east-1"] == {"instances": 3} and list(block["regions"]) == list(regions)


def test_an_agent_may_be_in_the_config_only(tmp_path: Path) -> None:
    config = tmp_path / "new.yaml"
    config.write_text("agent: new:agent\nregions: [us]\n")
    assert block_of(parse(FILE, tmp_path), "new", config)["agent"] == "new:agent"
    with pytest.raises(ConfigError, match=r"no such agent in .* \(known: shop\); add it to cluster.yaml, or pass --config"):
        block_of(parse(FILE, tmp_path), "new", None)


def test_a_mistake_in_a_config_is_reported(tmp_path: Path) -> None:
    config = tmp_path / "shop.json"
    config.write_text('{"limits": {"maxConnections": 0}}')
    with pytest.raises(ConfigError, match=r"limits\.maxConnections"):
        block_of(parse(FILE, tmp_path), "shop", config)


def test_regions_must_be_distinct() -> None:
    assert split_regions("us, eu") == ("us", "eu") and split_regions(None) == ()
    for wrong in ("", "us,us", ","):
        with pytest.raises(click.BadParameter):
            split_regions(wrong)


@pytest.mark.parametrize(
    "command",
    [
        ["promote", "shop"], ["promote", "shop", "--canary", "5", "--pause"], ["promote", "shop", "--canary", "0"],
        ["promote", "shop", "--canary", "101"], ["deploy", "shop", "--canary", "x"], ["deploy"], ["rollback"],
    ],
)  # fmt: skip
def test_contradictory_options_are_wrong_usage(command: list[str]) -> None:
    assert CliRunner().invoke(cli, command).exit_code == 2


@pytest.mark.parametrize("command", [["deploy", "shop"], ["promote", "shop", "--canary", "5"], ["rollback", "shop"]])
def test_without_a_running_cluster_the_command_fails(command: list[str], tmp_path: Path) -> None:
    application = {"name": "swiftclaw", "import_path": "deployments.app:build", "args": FILE}
    (tmp_path / "cluster.yaml").write_text(json.dumps({"applications": [application]}))
    done = CliRunner().invoke(cli, [*command, str(tmp_path / "cluster.yaml")])
    assert done.exit_code == 1 and "no Ray cluster is running on this machine" in done.output


# --- output ------------------------------------------------------------------------------------------------------


def test_versions_are_listed_with_the_state_of_the_rollout() -> None:
    (one,) = beside(10, 25, paused=True, analysis="inconclusive: few requests")["agents"]
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(tables.versions(one))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert lines[0].split() == ["VERSION", "ROLE", "TRAFFIC", "HEALTHY", "REQUESTS", "ERR", "%", "P50", "ms", "P95", "ms"]
    assert lines[2].split() == ["v2", "canary", "100", "%", "1", "of", "2", "10", "0", "1", "2"]
    assert lines[3:] == [
        "v2 will receive 25 % once enough of its instances are healthy",
        "the canary analysis of v2 is paused",
        "analysis: inconclusive: few requests",
    ]


def test_deploy_imports_ray_only_after_the_auth_mode_is_set(tmp_path: Path) -> None:
    """Ray reads the auth mode at import; set later, a cluster with a token would refuse the connection."""
    args = {"gateways": [{"region": "us"}], "agents": {"shop": {"agent": "shop:agent", "regions": {"us": {"instances": 1}}}}}
    application = {"name": "swiftclaw", "import_path": "deployments.app:build", "args": args}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    (tmp_path / "shop.py").write_text("from swiftclaw import Agent\nagent = Agent('shop')\n")
    script = (
        "import sys; from swiftclaw import cli; from swiftclaw.cli.ray_cluster import driver;"
        "driver.connected_to = lambda *_: sys.exit(f'connects; Ray imported: {\"ray\" in sys.modules}');"
        "cli.run(['deploy', 'shop'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip().endswith("connects; Ray imported: False"), done.stdout + done.stderr
