"""`serve run cluster.yaml` alone: Ray's own command, one node, no labels; then every command that changes something."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
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


def address_of(folder: Path) -> str:
    """The head address of the Ray cluster whose processes keep their files in this folder."""
    for process in psutil.process_iter(["name", "cmdline"]):
        arguments: list[str] = process.info["cmdline"] or []
        if process.info["name"] == "raylet" and any(str(folder) in argument for argument in arguments):
            return next(argument.partition("=")[2] for argument in arguments if argument.startswith("--gcs-address="))
    raise AssertionError(f"no raylet of {folder} is running")


def swiftclaw(cluster: Cluster, *command: str) -> tuple[int, str]:
    """A command without a record of `up`. Other clusters may run on this machine, so that RAY_ADDRESS has to name this one."""
    address = address_of(cluster.folder)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "swiftclaw"), *command],
        cwd=cluster.folder, env={**cluster.environment, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=120,
        check=False,
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


def test_down_removes_what_serve_run_started(served: Cluster) -> None:
    code, output = swiftclaw(served, "down")
    assert code == 0 and "stopped SwiftClaw" in output, output
    code, output = swiftclaw(served, "down")
    assert code == 0 and "nothing to stop" in output, output
