"""Processes that `up` started are recognized; others are never touched. Plain `sleep` processes stand in for Ray's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from swiftclaw import cli
from swiftclaw.cli.commands.up import Up
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster import cluster_record, driver, local_cluster, processes
from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord, RecordedNode
from swiftclaw.cli.ray_cluster.processes import StartedProcess
from swiftclaw.cli.undo import undoing

PARENT = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
        return started[-1]

    yield run
    for child in started:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def first_line(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout
    return child.stdout.readline()


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and leave a zombie."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_record_is_read_as_it_was_written_and_is_private(tmp_path: Path) -> None:
    written = ClusterRecord(
        "127.0.0.1:6379", True, False, "/tmp/x", "token", "127.0.0.1:8265", [RecordedNode("eu", StartedProcess(12, 3.5))]
    )
    cluster_record.save(tmp_path, written)
    assert cluster_record.load(tmp_path) == written
    assert stat.S_IMODE((tmp_path / cluster_record.FILE).stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [cluster_record.FILE]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "nodes": [{}]}'])
def test_a_damaged_record_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / cluster_record.FILE).write_text(content)
    with pytest.raises(CommandFailed, match="is damaged"):
        cluster_record.load(tmp_path)


@pytest.mark.parametrize(
    ("environment", "token", "mode"),
    [
        ({}, False, "disabled"),
        ({}, True, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "/x"}, False, "token"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "disabled"),
    ],
)
def test_the_auth_mode_is_token_where_the_user_has_one(
    environment: dict[str, str], token: bool, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert driver.auth_mode() == mode


def test_a_process_is_identified_by_id_and_creation_time(start: Start) -> None:
    child = start("sleep", "60")
    started = processes.identify(child.pid)
    assert processes.find(started) is not None
    assert processes.find(replace(started, created=started.created - 60)) is None
    end(child)
    assert processes.find(started) is None, "a zombie does not run"


def test_another_process_with_the_same_id_is_never_killed(start: Start) -> None:
    child = start("sleep", "60")
    other = replace(processes.identify(child.pid), created=time.time() - 3600)
    assert processes.stop([other], grace_s=0.2) == 0
    assert child.poll() is None


def test_children_are_stopped_with_their_parent(start: Start) -> None:
    child = start(sys.executable, "-c", PARENT)
    assert first_line(child) == b"up\n"
    (grandchild,) = psutil.Process(child.pid).children()
    processes.stop([processes.identify(child.pid)], grace_s=1)
    assert gone(child.pid)
    assert gone(grandchild.pid)


def test_orphans_of_a_dead_parent_are_stopped_if_they_have_the_mark(start: Start) -> None:
    child = start(sys.executable, "-c", PARENT, "ours-1")
    marked = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', 'ours-1']); " + PARENT
    )
    parent = start(sys.executable, "-c", marked)
    assert first_line(child) == first_line(parent) == b"up\n"
    ours, other = sorted(psutil.Process(parent.pid).children(), key=lambda one: "ours-1" not in one.cmdline())
    recorded = processes.identify(parent.pid)
    end(parent)
    processes.stop([recorded], grace_s=1, mark="ours-1")
    assert gone(ours.pid)
    assert not gone(other.pid), "in the session, without the mark"
    assert child.poll() is None, "with the mark, in another session"
    other.kill()


def test_a_process_that_ignores_sigterm_is_killed(start: Start) -> None:
    child = start(sys.executable, "-c", STUBBORN)
    assert first_line(child) == b"up\n"
    assert processes.stop([processes.identify(child.pid)], grace_s=0.3) == 1
    assert gone(child.pid)


def test_stopping_a_cluster_stops_its_nodes_and_keeps_the_logs(start: Start, tmp_path: Path) -> None:
    head, worker, other = (start("sleep", "60") for _ in range(3))
    temp_dir = tmp_path / "ray"
    (temp_dir / "session_latest" / "logs").mkdir(parents=True)
    (temp_dir / "session_latest" / "logs" / "raylet.out").write_text("why")
    nodes = [RecordedNode("us", processes.identify(head.pid)), RecordedNode("eu", processes.identify(worker.pid))]
    record = ClusterRecord("127.0.0.1:1", True, temp_dir=str(temp_dir), nodes=nodes)
    cluster_record.save(tmp_path, record)
    assert local_cluster.is_running(record)
    local_cluster.stop(record, tmp_path)
    assert gone(head.pid)
    assert gone(worker.pid)
    assert other.poll() is None
    assert cluster_record.load(tmp_path) is None
    assert (tmp_path / "logs" / "ray" / "raylet.out").read_text() == "why"
    assert not temp_dir.exists()


def test_a_region_whose_node_died_is_missing(start: Start) -> None:
    head, worker = start("sleep", "60"), start("sleep", "60")
    nodes = [RecordedNode("us", processes.identify(head.pid)), RecordedNode("eu", processes.identify(worker.pid))]
    record = ClusterRecord("127.0.0.1:1", True, nodes=nodes)
    assert local_cluster.missing(record, ["us", "eu", "ap"]) == ["ap"]
    end(worker)
    assert local_cluster.missing(record, ["us", "eu", "ap"]) == ["eu", "ap"]


def test_an_up_that_fails_stops_the_node_of_a_new_region_but_not_the_one_that_replaces_a_lost_one(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances of a region that ran before may serve on the new node already."""
    head, lost = start("sleep", "60"), start("sleep", "60")
    nodes = [RecordedNode("us", processes.identify(head.pid)), RecordedNode("eu", processes.identify(lost.pid))]
    cluster_record.save(tmp_path, ClusterRecord("127.0.0.1:1", True, nodes=nodes))
    end(lost)
    new = {}

    def add(cluster: ClusterRecord, folder: Path, regions: list[str], report: object) -> None:
        for region in regions:
            new[region] = start("sleep", "60")
            cluster.nodes.append(RecordedNode(region, processes.identify(new[region].pid)))

    monkeypatch.setattr(local_cluster, "add", add)
    monkeypatch.setattr("swiftclaw.cli.commands.up.regions_of", lambda settings: ["us", "eu", "ap"])
    startup = Up(None, tmp_path, 1.0, SimpleNamespace(report=print))  # type: ignore[arg-type]
    with pytest.raises(CommandFailed), startup.ray_cluster("local"):
        raise CommandFailed("a version does not start")
    assert set(new) == {"eu", "ap"} and new["eu"].poll() is None and gone(new["ap"].pid)


def test_down_after_a_reboot_touches_no_process(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    child = start("sleep", "60")
    other = replace(processes.identify(child.pid), created=1.0)
    (tmp_path / ".swiftclaw").mkdir()
    cluster_record.save(tmp_path / ".swiftclaw", ClusterRecord("127.0.0.1:1", True, nodes=[RecordedNode("us", other)]))
    assert cli.run(["down"]) == 0
    assert "stopped" in capsys.readouterr().out
    assert child.poll() is None
    assert not (tmp_path / ".swiftclaw" / cluster_record.FILE).exists()


def test_down_reports_that_the_joined_cluster_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".swiftclaw").mkdir()
    cluster_record.save(tmp_path / ".swiftclaw", ClusterRecord("127.0.0.1:1", False))
    assert cli.run(["down"]) == 0
    assert "no Ray cluster is reachable at 127.0.0.1:1" in capsys.readouterr().err
    assert cluster_record.load(tmp_path / ".swiftclaw") is None


def test_a_command_ends_although_the_cluster_cannot_be_left() -> None:
    """Ray waits for a node that was frozen, however long."""
    held = threading.Event()
    driver.disconnect(held.wait, 0.01)
    assert driver.is_leaving()
    held.set()
    deadline = time.monotonic() + 10
    while driver.is_leaving() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not driver.is_leaving()
    driver.disconnect(lambda: None)
    assert not driver.is_leaving()


def test_the_exit_status_is_that_of_the_command_when_ray_would_hold_up_the_end() -> None:
    program = """
import sys, threading, types
from swiftclaw import cli
from swiftclaw.cli.ray_cluster import driver
sys.modules["ray"] = types.ModuleType("ray")
cli.run = lambda: (print("done"), driver.disconnect(threading.Event().wait, 0.01), 3)[-1]
threading.Thread(target=threading.Event().wait).start()  # as Ray's: the interpreter would wait for it
cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (3, "done\n"), ended.stderr


def test_steps_are_undone_only_when_a_later_one_fails() -> None:
    done: list[str] = []
    with undoing(lambda: done.append("announced")) as undo:
        undo.by(lambda: done.append("undone"))
    with pytest.raises(CommandFailed), undoing(lambda: done.append("announced")):
        raise CommandFailed("before the first step")
    assert done == []
    with pytest.raises(KeyboardInterrupt), undoing(lambda: done.append("announced")) as undo:
        undo.by(lambda: done.append("first"))
        undo.by(lambda: done.append("second"))
        raise KeyboardInterrupt
    assert done == ["announced", "second", "first"]
