"""`swiftclaw test failover` on a real cluster, with the example agent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Cluster, get, my_agent, until

pytestmark = pytest.mark.cluster

ALONE = """
from swiftclaw import Agent

agent = Agent("alone", model="echo")


@agent.on_message
async def handle(message):
    return await agent.generate(message)
"""


@pytest.fixture(scope="module")
def example(shared: Cluster) -> Cluster:
    """The shipped example, and an agent with a single instance."""
    (shared.folder / "alone.py").write_text(ALONE)
    alone = {"agent": "alone:agent", "regions": {"us-east-1": {"instances": 1}}}
    soon = {"request": "10s"}  # sessions keep an instance that drains for half of it
    shared.write({"my-agent": my_agent(timeouts=soon), "alone": alone})
    shared.up()
    return shared


def report_of(cluster: Cluster, *options: str) -> dict[str, Any]:
    """The report as --json gives it."""
    done = cluster.run("test", "failover", "my-agent", *options, "--json", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_killed_instance_is_replaced_and_its_traffic_is_shared_evenly(example: Cluster) -> None:
    before = example.healthy()
    done = example.run("test", "failover", "my-agent", "--instance", "instance-1", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[-1].startswith("passed: ") and "instance-1" in done.stdout
    assert max(map(len, lines[:-1])) <= 80
    assert "\x1b" not in done.stdout and "taking instance-1 out of service: kill" in done.stderr
    after = example.healthy()
    assert after["instance-1"] != before["instance-1"]
    assert {**after, "instance-1": 0} == {**before, "instance-1": 0}


def test_a_drained_instance_loses_nothing_and_another_process_takes_its_name(example: Cluster) -> None:
    before = example.healthy()
    found = report_of(example, "--instance", "instance-4", "--mode", "drain")
    counts = found["requests"]
    assert found["passed"] and counts["ok"] == counts["sent"] > 500
    assert 0 < found["back_s"] < 60
    assert example.healthy()["instance-4"] != before["instance-4"]


def test_an_instance_held_as_unhealthy_is_left_out_and_is_the_same_process_afterwards(example: Cluster) -> None:
    before = example.healthy()
    found = report_of(example, "--instance", "instance-7", "--mode", "unhealthy", "--duration", "6s", "--rate", "40")
    counts = found["requests"]
    assert found["passed"] and counts["ok"] == counts["sent"] > 250
    assert found["last_answer_s"] < 6 <= found["back_s"]
    shares = found["shares"]
    assert "instance-7" not in {one["id"] for one in shares["instances"] if one["requests"]}
    assert sum(one["expected"] for one in shares["instances"]) == pytest.approx(100, abs=0.1)
    assert all(one["requests"] for one in shares["instances"])
    until(lambda: example.healthy() == before, "the same processes", 30)
    said = [event["message"] for event in get(f"{example.admin}/api/events") if event["instance"] == "instance-7"]
    assert "`swiftclaw test failover` took instance-7 out of service (unhealthy)" in said


def test_the_only_healthy_instance_is_not_taken_away(example: Cluster) -> None:
    refused = example.run("test", "failover", "alone", "--instance", "instance-1")
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.startswith("instance-1 is the only healthy instance of alone")
    assert refused.stderr.count("\n") == 1


def test_forced_on_the_only_instance_its_clients_are_refused_by_name_until_it_is_back(example: Cluster) -> None:
    options = ["--instance", "instance-1", "--mode", "unhealthy", "--duration", "3s", "--force", "--json"]
    done = example.run("test", "failover", "alone", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {error["type"] for error in found["errors"]} == {"no_healthy_instance"}
    assert found["requests"]["refused"] == found["requests"]["unavoidable"] > 0
    assert found["requests"]["failed"] == 0


def test_ctrl_c_puts_an_unhealthy_instance_back_at_once(example: Cluster) -> None:
    before = example.healthy()
    program = str(Path(sys.executable).parent / "swiftclaw")
    options = ["my-agent", "--instance", "instance-2", "--mode", "unhealthy", "--duration", "10m"]
    with subprocess.Popen(
        [program, "test", "failover", *options], cwd=example.folder, env=example.environment, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            until(lambda: "instance-2" not in example.healthy(), "instance-2 is out", 60)
            row = next(row for row in example.instances() if row["id"] == "instance-2")
            assert row["health"] == {**row["health"], "status": "unhealthy"} and "test failover" in row["health"]["reason"]
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 1 and said.endswith("interrupted\n")
    until(lambda: example.healthy() == before, "instance-2 is well again", 10)
