"""What docs/command-line.md shows is what the commands print now: the same headings and kinds of rows, in 80 columns."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.desired.rollout_transitions import CanaryState, Version
from cluster.telemetry.events import KINDS
from swiftclaw import cli
from swiftclaw.cli.commands.metrics import METRICS
from tests.cluster.conftest import port
from tests.cluster.stand_in import Port

__all__ = ["port"]  # the fixture: an admin port without Ray

PAGE = Path(__file__).parents[1] / "docs/command-line.md"
SHOWN = dict(re.findall(r"^```text\n\$ swiftclaw (.*?)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))
VIEWS = (
    "status", "status my-agent", "instances my-agent", "instances my-agent --health", "events",
    *(f"metrics my-agent --metric {metric}" for metric in METRICS), "dashboard my-agent --view load",
)  # fmt: skip
KINDS_OF_VALUES = (  # what differs from one cluster to the next, and what stands for it
    (r"http://[\d.]+:\d+", "URL"),
    (r"^[\d.]+:\d+", "ADDRESS"),
    (r"\b(?:us-east-1|eu-west-1|ap-southeast-1)\b", "REGION"),
    (r"\b(?:healthy|unhealthy|starting|draining)\b", "STATE"),
    (r"\b(instance-|v)\d+\b", r"\1N"),
    (r"[ ▏▎▍▌▋▊▉█]+", " "),  # bars
    (r"(?<= )(?:\d+[smhd] ago|\d+[smhd]|never|-?\d[\d.,]*|-)(?= |$)", "VALUE"),
    (r"(ADDRESS REGION VALUE)(?: VALUE)+", r"\1 PIDS"),
    (r"(REGION STATE [a-z-]+ VALUE).*", r"\1 REASON"),
)


def kinds(line: str) -> str:
    """`instance-1 us-east-1 v1 healthy 0 12` -> `instance-N REGION vN STATE VALUE VALUE`."""
    for pattern, stands in KINDS_OF_VALUES:
        line = re.sub(pattern, stands, line)
    return line.strip()


def rows(said: Iterable[str]) -> list[str]:
    """Headings, and one row of each kind, in order."""
    return [kind for kind in dict.fromkeys(map(kinds, said)) if kind]


def canary(port: Port) -> None:
    """v2 with 20 % of the traffic, on an instance in each region."""
    rollouts, now = port.cluster.rollouts.rollouts, time.time()
    version = Version("v2", {"agent": "m:agent"})
    rollouts["my-agent"] = replace(
        rollouts["my-agent"], canary=CanaryState(version, target=20, percent=20, changed_at=now, deadline_at=now + 60)
    )
    port.cluster.start_instance("my-agent", "canary", "us-east-1", "v2")


def test_every_view_is_shown() -> None:
    assert set(SHOWN) == set(VIEWS)
    tables = [said for view, said in SHOWN.items() if view != "events"]  # an event is one line, however long
    assert max(len(line) for said in tables for line in said.splitlines()) <= 80


async def printed(port: Port, view: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert await asyncio.to_thread(cli.run, [*view.split(), "--admin", port.url]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "events"])
async def test_it_has_the_columns_and_rows_that_are_printed(
    view: str, port: Port, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    if view == "status my-agent":
        canary(port)
    port.cluster.serve(30, 3, errors=0.1)
    now = await printed(port, view, capsys)
    assert max(map(len, now)) <= 80
    assert rows(SHOWN[view].splitlines()) == rows(now)


async def test_events_are_lines_as_they_are_printed(
    port: Port, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    port.cluster.registry.judge("us-east-1-0", False, "database", time.time())
    form = re.compile(rf"\d\d:\d\d:\d\d (?=.{{8}} )(?:{'|'.join(KINDS)}) +\S.*")
    shown, now = SHOWN["events"].splitlines(), await printed(port, "events", capsys)
    assert [line for line in (*shown, *now) if not form.fullmatch(line)] == []
    started = {"instance my-agent: instance-N is STATE in REGION", "instance my-agent: instance-N started in REGION"}
    assert started <= {kinds(line[9:]) for line in shown} & {kinds(line[9:]) for line in now}
