"""What counts as settled, and what is left of a cluster: judged from what it shows and from its files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.cluster import AGENT
from tests.campaign.remains import files_left, tracebacks
from tests.campaign.settle import unsettled

NOW = 5000.0
INSTANCES: list[dict[str, Any]] = [
    {
        "id": f"instance-{number}",
        "state": "healthy",
        "circuit": "closed",
        "version": "v1",
        "connections": 0,
        "active_connections": 0,
        "health": {"checked_at": NOW - 1},
    }
    for number in (1, 2)
]
STATUS: dict[str, Any] = {
    "agents": [
        {
            "name": AGENT,
            "rollout": {"stable": "v1", "canary": None},
            "versions": [{"version": "v1", "role": "stable"}],
            "regions": {"us-east-1": {"healthy": 2, "instances": 2}},
        }
    ],
    "gateways": [{"pid": 1, "current": True}, {"pid": 2, "current": True}],
    "problems": {},
    "apps": {"swiftclaw": {"status": "RUNNING"}},
}


def test_a_cluster_that_is_well_is_settled() -> None:
    assert unsettled(STATUS, INSTANCES, 2, NOW) == []


def instance(**changes: Any) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda status, rows: rows[0].update(changes)


def agent(**changes: Any) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda status, rows: status["agents"][0].update(changes)


def whole(**changes: Any) -> Callable[[dict[str, Any], list[dict[str, Any]]], None]:
    return lambda status, rows: status.update(changes)


@pytest.mark.parametrize(
    "change, reason",
    [
        (instance(state="unhealthy"), "instance-1 is unhealthy"),
        (instance(circuit="open"), "instance-1: circuit open"),
        (instance(version="v2"), "instance-1: version v2, not v1"),
        (instance(connections=1), "instance-1: 1 / 0 in flight"),
        (instance(health={"checked_at": NOW - 60}), "instance-1: no health check for 60 s"),
        (instance(health={"checked_at": None}), f"instance-1: no health check for {NOW:.0f} s"),
        (agent(regions={"us-east-1": {"healthy": 1, "instances": 2}}), "us-east-1: 1 of 2 instances are healthy"),
        (agent(rollout={"stable": "v1", "canary": "v2"}), "versions: [('v1', 'stable')]"),
        (whole(gateways=[{"pid": 1, "current": True}]), "1 of 2 gateways are current"),
        (whole(gateways=[{"pid": 1, "current": True}, {"pid": 2, "current": False}]), "1 of 2 gateways are current"),
        (whole(problems={"disk": "full"}), "problem: disk: full"),
        (whole(apps={"swiftclaw": {"status": "UNHEALTHY"}}), "swiftclaw: UNHEALTHY"),
    ],
)
def test_what_is_not_as_it_was_is_named(change: Callable[[dict[str, Any], list[dict[str, Any]]], None], reason: str) -> None:
    status, rows = copy.deepcopy(STATUS), copy.deepcopy(INSTANCES)
    change(status, rows)
    assert unsettled(status, rows, 2, NOW) == [reason]


TRACEBACK = """12:00:00 INFO before
Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
ValueError: request 17 of {identity}
12:00:01 INFO after
"""


def test_tracebacks_are_counted_by_log_and_last_line(tmp_path: Path) -> None:
    for number in range(3):
        log = tmp_path / "serve" / f"replica_chaos-{number}abcdef1.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(TRACEBACK.format(identity=f"{number}0123456789abcdef"))
    (tmp_path / "raylet.log").write_text(TRACEBACK)
    assert tracebacks(tmp_path) == {"replica_chaos: ValueError: request # of #": 3}


def test_logs_without_a_traceback_have_none(tmp_path: Path) -> None:
    (tmp_path / "controller_1.log").write_text("INFO all is well\n")
    assert tracebacks(tmp_path) == {}
    assert tracebacks(tmp_path / "none") == {}


def test_temporary_folders_and_counts_of_the_session_are_left_over(tmp_path: Path) -> None:
    shared = tmp_path / "shm" / f"swiftclaw-{os.getuid()}-counts"
    for session in ("mine", "other"):
        (shared / session).mkdir(parents=True)
        (shared / session / "gateway-1").touch()
    (tmp_path / "swiftclaw-abc").mkdir()
    left = files_left(tmp_path, "mine", tmp_path / "shm")
    assert sorted(left) == sorted([str(tmp_path / "swiftclaw-abc"), str(shared / "mine/gateway-1")])
    assert files_left(tmp_path / "another", "", tmp_path / "shm") == []
