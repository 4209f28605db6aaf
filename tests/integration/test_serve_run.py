"""`serve run cluster.yaml` alone: Ray's own command, one node, no labels; then every command that changes something."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Cluster, get, my_agent, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def served(stopped: Cluster) -> Iterator[Cluster]:
    stopped.write({"my-agent": my_agent(timeouts={"request": "4s"})})  # as long as sessions keep an instance that drains
    with (stopped.folder / "serve.log").open("wb") as log:
        serve = subprocess.Popen(
            [str(Path(sys.executable).parent / "serve"), "run", "cluster.yaml"],
            cwd=stopped.folder, env=stopped.environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: len(stopped.healthy()) == 7 and len(stopped.gateways()) == 2, "7 instances and 2 gateways")
        yield stopped
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait(60)


def swiftclaw(cluster: Cluster, *command: str, folder: Path | None = None) -> tuple[int, str]:
    """A command as its user types it: RAY_ADDRESS does not name the cluster."""
    environment = {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "swiftclaw"), *command],
        cwd=folder or cluster.folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_serve_run_brings_up_gateways_and_agents(served: Cluster) -> None:
    status = get(f"{served.admin}/api/status")
    assert any("logical" in warning for warning in status["warnings"]), status["warnings"]
    assert get(f"{served.url}/-/healthz") == "success"
    assert get(f"{served.url}/agents/my-agent/orders/1042")


def test_every_changing_command_works_and_a_canary_of_unchanged_code_goes_all_the_way(served: Cluster) -> None:
    for command, expected in {
        "scale my-agent --region us-east-1 --instances 1": "3 -> 1 instances",
        "scale my-agent --region eu-west-1 --instances 1": "2 -> 1 instances",
        "deploy my-agent --canary 10": "v2 receives 10 % of the traffic",
        "promote my-agent --canary 25": "v2 receives 25 % of the traffic",
        "rollback my-agent": "",
        "deploy my-agent --canary 50": "v3 receives 50 % of the traffic",
        "promote my-agent --canary 100": "v3 receives all traffic",
        "rotate-key": "signed with a new key",
    }.items():
        code, output = swiftclaw(served, *command.split())
        assert code == 0 and expected in output, f"{command}: {output}"


def test_down_from_another_folder_is_refused_and_from_this_one_leaves_nothing(served: Cluster, tmp_path: Path) -> None:
    code, output = swiftclaw(served, "down", folder=tmp_path)
    assert code == 1 and str(served.folder) in output and len(served.gateways()) == 2
    code, output = swiftclaw(served, "down")
    assert code == 0 and "stopped SwiftClaw" in output, output
    code, output = swiftclaw(served, "down")
    assert code == 0 and "nothing to stop" in output, output
