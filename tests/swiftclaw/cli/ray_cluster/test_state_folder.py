"""A state folder that cannot be written: `up` is refused, `down` stops everything and reports what was left in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.ray_cluster import cluster_record, local_cluster, processes
from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord, RecordedNode
from swiftclaw.cli.ray_cluster.processes import StartedProcess

ERRNOS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO]


@pytest.fixture(params=ERRNOS, ids=lambda number: errno.errorcode[number])
def refuse(request: pytest.FixtureRequest) -> Any:
    def refusing(*_: object, **__: object) -> Any:
        raise OSError(request.param, os.strerror(request.param))

    return refusing


def test_up_is_refused_with_the_reason_and_down_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any) -> None:
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CommandFailed, match=r"is not writable: .*; nothing was changed"), cluster_record.locked(tmp_path):
        pass
    with cluster_record.locked(tmp_path, writable=False):
        pass


def test_down_waits_for_no_lock_file_but_respects_one(tmp_path: Path) -> None:
    busy = pytest.raises(CommandFailed, match="another `swiftclaw up` or `down`")
    with cluster_record.locked(tmp_path), busy, cluster_record.locked(tmp_path, writable=False):
        pass
    lock = (tmp_path / "cli.lock").open("r")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was released
    lock.close()


@pytest.mark.parametrize("what", ["logs", "record"])
def test_everything_is_stopped_and_what_could_not_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any, what: str
) -> None:
    stopped: list[StartedProcess] = []
    monkeypatch.setattr(processes, "stop", lambda found, *_, **__: stopped.extend(found))
    temp = tmp_path / "ray"
    (temp / "session_latest" / "logs").mkdir(parents=True)
    folder = tmp_path / "state"
    folder.mkdir()
    node = RecordedNode("us", StartedProcess(1, 0.0))
    cluster = ClusterRecord("127.0.0.1:1", started_ray=True, temp_dir=str(temp), nodes=[node])
    cluster_record.save(folder, cluster)
    if what == "logs":
        monkeypatch.setattr(shutil, "copytree", refuse)
    else:
        monkeypatch.setattr(Path, "unlink", refuse)
    problem = local_cluster.stop(cluster, folder)
    assert stopped == [node.process] and not temp.exists()
    assert ("logs could not be kept" if what == "logs" else "the record") in problem
    assert (folder / "cluster.json").exists() == (what == "record")


def test_the_reason_of_many_failed_files_is_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def many(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'"), ("c", "d", "[Errno 28] No space left: 'd'")])

    monkeypatch.setattr(shutil, "copytree", many)
    (tmp_path / "ray" / "session_latest" / "logs").mkdir(parents=True)
    cluster = ClusterRecord("127.0.0.1:1", started_ray=True, temp_dir=str(tmp_path / "ray"))
    assert local_cluster.stop(cluster, tmp_path).endswith("logs: [Errno 28] No space left")
