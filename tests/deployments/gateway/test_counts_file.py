"""What a gateway counted and had not told when it was killed is told by another, once, whatever moment it was killed at."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from cluster.messages import Observation
from cluster.telemetry.tally import CODES, Tally
from cluster.telemetry.totals import MetricTotals
from deployments.balancing.agents import AgentTable
from deployments.gateway import counts_file
from deployments.gateway.counts_file import ROWS, CountsFile, files, held
from deployments.gateway.node_files import OLD_S, place
from deployments.gateway.reporter import Reporter
from policies.base import Request
from policies.errors import RateLimited, SwiftClawError
from tests.deployments.helpers import member, snapshot

KEY = ("a", "v1", "us", "instance-1")
WRITER = """
import sys
from pathlib import Path
from cluster.telemetry.tally import Tally
from deployments.gateway.counts_file import CountsFile

kept, tally = CountsFile(Path(sys.argv[1]), "gateway.us#1"), Tally()
kept.attach(("a", "v1", "us", "instance-1"), tally)
while True:
    tally.add(200, 0.1, 0.05)
    print(sum(tally.codes.values()), flush=True)
"""


def gateway(folder: Path, name: str = "g1") -> tuple[AgentTable, Reporter, CountsFile]:
    kept = CountsFile(folder, name)
    agents = AgentTable(Random(1), name)
    reporter = Reporter(agents, kept)
    reporter.track(agents.apply(snapshot(member(1), member(2, region="eu"))))
    return agents, reporter, kept


def ask(agents: AgentTable, count: int, code: int = 200) -> None:
    for _ in range(count):
        agents.pool("a").choose(Request(agent="a", now=1.0), (), 1.0).release(code, 1.5)


def kill(kept: CountsFile) -> None:
    """As the kernel does it."""
    fcntl.flock(kept.lock, fcntl.LOCK_UN)


def left(folder: Path) -> list[Observation]:
    found = []
    for path in files(folder):
        with held(path) as behind:
            found += behind.observations() if behind is not None else []
    return found


def adopt(folder: Path, ledger: MetricTotals) -> None:
    for path in files(folder):
        with held(path) as behind:
            if behind is not None:
                for seen in behind.observations():
                    ledger.add(seen, 1.0)
                behind.remove()


def counted(ledger: MetricTotals) -> int:
    return sum(totals.requests for totals in ledger.instances.values()) + sum(ledger.refusals.values())


def test_a_process_that_is_killed_while_it_counts_has_counted_all_that_it_said(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(100):
            process.stdout.readline()
        assert left(tmp_path) == [], "it lives"
        process.send_signal(signal.SIGKILL)
        said = int(([line for line in process.stdout if line.endswith("\n")] or ["100"])[-1])
        process.wait(30)
    (seen,) = left(tmp_path)
    found = seen.instances[KEY]
    assert seen.gateway == "gateway.us#1" and seen.batch == 1
    assert said <= found.codes[200] <= said + 1, "the last one may not have been said yet"
    assert abs(sum(found.durations) - found.codes[200]) <= 1


def test_what_was_told_is_not_told_again_and_the_rest_is(tmp_path: Path) -> None:
    agents, reporter, kept = gateway(tmp_path)
    ledger = MetricTotals()
    ask(agents, 5)
    ledger.add(reporter.observation(), 1.0)
    reporter.delivered()
    ask(agents, 3, 503)
    reporter.refused(RateLimited("too often", agent="a"))
    reporter.refused(SwiftClawError("what", agent="nobody"))
    kill(kept)
    (seen,) = left(tmp_path)
    assert sum((Counter(one.codes) for one in seen.instances.values()), Counter()) == {503: 3}
    assert seen.refusals == {("a", 429): 1, ("", 500): 1}
    adopt(tmp_path, ledger)
    assert counted(ledger) == 10
    assert files(tmp_path) == []


@pytest.mark.parametrize("arrived", [False, True])
def test_one_that_was_under_way_counts_once_whether_it_arrived_or_not(tmp_path: Path, arrived: bool) -> None:
    agents, reporter, kept = gateway(tmp_path)
    ledger = MetricTotals()
    ask(agents, 5)
    under_way = reporter.observation()
    ask(agents, 2)
    if arrived:
        ledger.add(under_way, 1.0)
    kill(kept)
    assert [seen.batch for seen in left(tmp_path)] == [1, 2]
    adopt(tmp_path, ledger)
    assert counted(ledger) == 7
    assert not ledger.add(under_way, 2.0), "late, and known"
    assert counted(ledger) == 7


def test_whatever_the_moment_nothing_is_lost_and_nothing_counted_twice(tmp_path: Path) -> None:
    """200 gateways that are killed after any number of steps; observations arrive or not, and so do their answers."""
    rng = Random(7)
    for life in range(200):
        agents, reporter, kept = gateway(tmp_path, f"g{life}")
        ledger, asked = MetricTotals(), 0
        for step in range(rng.randrange(12)):
            what = rng.random()
            if what < 0.5:
                asked += (more := rng.randrange(4))
                ask(agents, more, rng.choice((200, 404, 502)))
            elif what < 0.6:  # an instance is replaced
                reporter.track(agents.apply(snapshot(member(1, replica=f"r{step}"), member(2), version=f"v{step}")))
            else:
                seen = reporter.observation()
                if rng.random() < 0.7:
                    ledger.add(seen, 1.0)
                    if rng.random() < 0.7:
                        reporter.delivered()
        kill(kept)
        adopt(tmp_path, ledger)
        assert counted(ledger) == asked


def test_a_file_is_told_by_one_at_a_time_and_stays_when_that_one_could_not(tmp_path: Path) -> None:
    agents, _reporter, kept = gateway(tmp_path)
    ask(agents, 3)
    assert left(tmp_path) == [], "its gateway lives"
    kill(kept)
    with held(kept.path) as one, held(kept.path) as other:
        assert one is not None and other is None
    assert len(left(tmp_path)) == 1


def test_rows_are_used_again_once_what_they_counted_was_told(tmp_path: Path) -> None:
    agents, reporter, kept = gateway(tmp_path)
    for number in range(ROWS):
        reporter.track(agents.apply(snapshot(member(1, replica=f"r{number}"), version=str(number))))
        ask(agents, 1)
        reporter.observation()
        reporter.delivered()
    ask(agents, 1)
    kill(kept)
    (seen,) = left(tmp_path)
    assert {key: counts.codes for key, counts in seen.instances.items()} == {KEY: {200: 1}}


def test_more_instances_than_rows_are_counted_all_the_same_while_the_gateway_lives(tmp_path: Path) -> None:
    kept = CountsFile(tmp_path, "g1")
    tallies = [Tally() for _ in range(ROWS + 1)]
    attached = [kept.attach(("a", "v1", "us", f"instance-{number}"), tally) for number, tally in enumerate(tallies)]
    assert attached == [True] * ROWS + [False]
    for tally in tallies:
        tally.count(200)
    assert all(tally.take().codes == {200: 1} for tally in tallies)
    assert not kept.attach(("a" * 300, "v1", "us", "instance-1"), Tally())


def test_more_statuses_than_places_are_counted_together() -> None:
    tally = Tally()
    for code in range(200, 200 + 2 * CODES):
        tally.count(code)
    codes = tally.take().codes
    assert sum(codes.values()) == 2 * CODES and len(codes) == CODES and codes[0] == CODES + 1


@pytest.mark.parametrize("damage", ["short", "layout", "batches", "empty"])
def test_a_file_that_cannot_be_understood_says_nothing_and_goes(tmp_path: Path, damage: str) -> None:
    agents, _reporter, kept = gateway(tmp_path)
    ask(agents, 3)
    kill(kept)
    content = bytearray(kept.path.read_bytes())
    if damage == "layout":
        content[0] ^= 1
    elif damage == "batches":
        content[8] = 77
    kept.path.write_bytes({"short": content[:4], "empty": bytearray()}.get(damage, content))
    ledger = MetricTotals()
    adopt(tmp_path, ledger)
    assert counted(ledger) == 0 and files(tmp_path) == []


def test_a_gateway_that_stops_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    *_, kept = gateway(folder)
    kept.remove()
    assert not folder.exists()


def test_only_this_user_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.gateway.node_files.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("deployments.gateway.node_files.os.access", lambda *_: False)  # no memory to share
    folder = place("session_1")
    kept = CountsFile(folder, "g1")
    for path, mode in ((folder, 0o700), (folder.parent, 0o700), (kept.path, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    folder.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="no other user can read"):
        place("session_1")


def test_what_other_clusters_have_left_behind_goes_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.gateway.node_files.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("deployments.gateway.node_files.os.access", lambda *_: False)
    old, fresh, alive = (CountsFile(place(name), "g") for name in ("old", "fresh", "alive"))
    for kept in (old, fresh):
        kill(kept)
    for kept in (old, alive):
        os.utime(kept.path, (time.time() - 2 * OLD_S,) * 2)
    mine = place("mine")
    assert sorted(folder.name for folder in mine.parent.iterdir()) == ["alive", "fresh", "mine"]


def test_where_no_file_can_be_made_a_gateway_counts_without_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(cluster: str) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(counts_file, "place", full)
    assert counts_file.open_counts_file("cluster", "g1") is None
    assert "no counts file" in caplog.text and "no space left on device" in caplog.text
