"""Session homes that survive a kill of the only gateway: its file, and what the next gateway makes of it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.config import parse
from cluster.messages import AgentView, Member, Snapshot
from deployments.balancing.agents import AgentTable
from deployments.gateway import homes_file
from deployments.gateway.homes_file import HomesFile, open_homes_file
from deployments.gateway.session_exchange import SessionExchange
from policies.base import Request
from policies.sessions.homes import SessionHome

WRITER = """
import sys
from pathlib import Path
from deployments.gateway.homes_file import HomesFile

file = HomesFile(Path(sys.argv[1]), "gateway.us#1")
for number in range(1_000_000):
    file.append([["bot", f"s{number}", "instance-1", "r1", "v1", 0, 1.0, 1.0]])
    print(number, flush=True)
"""


class Gateway:
    """As much of one as places sessions."""

    def __init__(self, folder: Path, name: str, replicas: Iterable[str] = "abcdefg") -> None:
        self.agents = AgentTable(Random(name), name)
        self.exchange = SessionExchange(self.agents)
        self.file = HomesFile(folder, name)
        block = {"agent": "m:x", "loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}
        settings = parse({"agents": {"bot": block}}, Path("/"))
        members = tuple(Member(f"instance-{r}", r, "h", 1, "v1", "local", 1, "healthy") for r in replicas)
        view = AgentView(settings.agents["bot"], True, members)
        self.agents.apply(Snapshot("1", "key", settings.http, {"bot": view}, ("11" * 32,)))

    def ask(self, session: str) -> str:
        pool, now = self.agents.pools["bot"], time.monotonic()
        lease = pool.choose(Request("bot", session, now=now), (), now)
        self.exchange.collect(now)
        lease.release(200, now, ok=True)
        return lease.backend.member.replica

    def kill(self) -> None:
        """As the system does it."""
        fcntl.flock(self.file._file, fcntl.LOCK_UN)

    def rows(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.file.path.read_text().splitlines()]

    def homes(self) -> dict[str, str]:
        sessions = self.agents.pools["bot"].sessions
        assert sessions is not None
        return {change.session: change.home.replica for change in sessions.homes.everything(time.monotonic())}


async def started(folder: Path, name: str, replicas: Iterable[str] = "abcdefg") -> Gateway:
    made = Gateway(folder, name, replicas)
    await made.exchange.recover(made.file)
    return made


async def test_the_only_gateway_is_killed_and_its_successor_knows_every_home(tmp_path: Path) -> None:
    names = [f"s{n}" for n in range(200)]
    first = await started(tmp_path, "g1", "abc")
    homes = {name: first.ask(name) for name in names}
    first.kill()
    second = await started(tmp_path, "g2")  # and four more instances, among which a hash would choose
    assert {name: second.ask(name) for name in names} == homes
    assert not first.file.path.exists()
    second.kill()
    third = await started(tmp_path, "g3")
    assert third.homes() == homes, "what was taken over is kept in the successor's own file"


async def test_a_gateway_that_runs_keeps_its_file(tmp_path: Path) -> None:
    first = await started(tmp_path, "g1")
    first.ask("s")
    second = await started(tmp_path, "g2")
    assert second.homes() == {} and first.file.path.exists()


async def test_what_is_known_already_stays_and_what_is_news_is_reported_to_the_others(tmp_path: Path) -> None:
    first = await started(tmp_path, "g1", "a")
    first.ask("moved"), first.ask("news")
    first.kill()
    second = Gateway(tmp_path, "g2", "ab")
    sessions = second.agents.pools["bot"].sessions
    assert sessions is not None
    sessions.homes.place("moved", SessionHome("instance-b", "b", "v1", moves=1, placed_at=time.time()), time.monotonic())
    sessions.homes.changes(time.monotonic())
    await second.exchange.recover(second.file)
    assert second.homes() == {"moved": "b", "news": "a"}
    assert [change.session for change in sessions.homes.changes(time.monotonic())] == ["news"]


def test_of_a_process_that_is_killed_while_it_writes_every_line_but_the_last_is_read(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        reported = [next(writer.stdout) for _ in range(500)]
        writer.kill()
    mine = HomesFile(tmp_path, "mine")
    ((_, rows),) = mine.orphans()
    assert len(rows) >= len(reported)
    assert [row[1] for row in rows[:500]] == [f"s{n}" for n in range(500)]


@pytest.mark.parametrize(
    "tail", [b'["bot","s', b"[1,2]\n", b"[1,2,3,4,5,6,7,8]\n", b'["bot","s","i","r","v",0,"1",1]\n', b"{}\n", b"\xff\n", b"\n"]
)
async def test_lines_that_are_none_are_passed_over(tmp_path: Path, tail: bytes) -> None:
    first = await started(tmp_path, "g1")
    home = first.ask("s")
    os.write(first.file._file, tail)
    first.kill()
    assert (await started(tmp_path, "g2")).homes() == {"s": home}


async def test_it_is_rewritten_when_most_lines_are_out_of_date_and_loses_nothing_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes_file, "SLACK", 10)
    one = await started(tmp_path, "g1")
    row = ["bot", "s", "instance-a", "a", "v1", 0, 1.0, time.monotonic()]
    for _ in range(11):
        one.file.append([row])
    assert one.file.is_due(0) and not one.file.is_due(1)
    one.file.append([row] * 9)
    one.ask("s1")  # due: it is rewritten in the background
    one.ask("s2")
    await one.file.rewritten()
    assert sorted(line[1] for line in one.rows()) == ["s1", "s2"]
    one.kill()
    assert set((await started(tmp_path, "g2")).homes()) == {"s1", "s2"}


async def test_a_full_disk_ends_the_file_and_not_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    one = await started(tmp_path, "g1")
    monkeypatch.setattr("deployments.gateway.homes_file.os.write", full)
    with caplog.at_level(logging.WARNING):
        homes = {name: one.ask(name) for name in ("s1", "s2")}
    assert caplog.text.count("no more homes file") == 1
    assert {name: one.ask(name) for name in homes} == homes
    one.file.rewrite([])
    await one.file.rewritten()
    assert not one.file.is_due(0)
    one.file.remove()


def test_where_no_file_can_be_made_a_gateway_goes_without(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(cluster: str) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(homes_file, "place", full)
    assert open_homes_file("cluster", "g1") is None
    assert "no homes file" in caplog.text


async def test_a_gateway_that_stops_takes_its_file_and_the_last_one_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    one, other = HomesFile(folder, "g1"), HomesFile(folder, "g2")
    one.remove()
    assert folder.exists()
    other.remove()
    assert not folder.exists()


@pytest.mark.parametrize("step_s", [7200.0, -7200.0])
async def test_a_clock_that_is_set_between_two_gateways_loses_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    first = await started(tmp_path, "g1")
    home = first.ask("s")
    first.kill()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + step_s)
    assert (await started(tmp_path, "g2")).homes() == {"s": home}
