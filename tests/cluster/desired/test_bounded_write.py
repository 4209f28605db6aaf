"""A disk that does not answer holds up the thread that writes, and not the caller."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.desired.bounded_write import BoundedWrites
from cluster.desired.state import State, StateNotSaved, Store, write_private


class Disk:
    """Hangs in fsync while `answers` is not set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.waiting = threading.Event()

    def fsync(self, descriptor: int) -> None:
        self.waiting.set()
        self.answers.wait(30)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(os, "fsync", made.fsync)
    yield made
    made.answers.set()


def finish(writes: BoundedWrites) -> None:
    assert writes._latest is not None and writes._latest.over.wait(30)


def bounded(file: Path, write: Callable[..., None] = write_private) -> BoundedWrites:
    return BoundedWrites(file, write, within_s=0.05)


def test_a_write_that_is_answered_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    BoundedWrites(tmp_path / "file", write_private)("content")
    assert (tmp_path / "file").read_text() == "content"


def test_an_error_of_the_disk_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BoundedWrites(tmp_path / "none/file", write_private)("content")


def test_a_write_that_hangs_is_given_up_and_has_no_effect_when_the_disk_answers_at_last(tmp_path: Path, disk: Disk) -> None:
    writes = bounded(tmp_path / "file")
    writes("old")
    disk.answers.clear()
    with pytest.raises(TimeoutError, match="does not answer"):
        writes("new")
    disk.answers.set()
    finish(writes)
    assert (tmp_path / "file").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"], "nothing is left beside it"


def test_while_a_write_hangs_the_next_is_refused_at_once_and_later_ones_work(tmp_path: Path, disk: Disk) -> None:
    started = []

    def write(file: Path, content: str, go_on: Callable[[], bool]) -> None:
        started.append(content)
        write_private(file, content, go_on)

    writes = bounded(tmp_path / "file", write)
    disk.answers.clear()
    for content in ("one", "two", "three"):
        with pytest.raises(TimeoutError):
            writes(content)
    assert started == ["one"], "one thread waits, not many"
    disk.answers.set()
    finish(writes)
    writes("four")
    assert (tmp_path / "file").read_text() == "four"


def test_a_state_that_cannot_be_saved_in_time_is_not_saved_and_is_saved_again_later(tmp_path: Path, disk: Disk) -> None:
    store = Store(tmp_path)
    store._write_state = bounded(tmp_path / "state.json")
    store.save(State(started_with="one"))
    disk.answers.clear()
    with pytest.raises(StateNotSaved, match=r"cannot be written \(the disk does not answer\): nothing was changed"):
        store.save(State(started_with="two"))
    saved = Store(tmp_path).load()
    assert saved is not None and saved.started_with == "one"
    disk.answers.set()
    finish(store._write_state)
    store.save(State(started_with="one"), again=True)
    saved = Store(tmp_path).load()
    assert saved is not None and saved.started_with == "one", "what was refused is in no file"


async def test_the_event_loop_runs_on_while_the_disk_hangs(tmp_path: Path, disk: Disk) -> None:
    store = Store(tmp_path)
    store._write_state = bounded(tmp_path / "state.json")
    disk.answers.clear()
    for _ in range(20):  # a round each
        with pytest.raises(StateNotSaved):
            store.save(State(started_with="one"), again=True)
        await asyncio.sleep(0)
    assert not disk.answers.is_set(), "none of them has waited for the disk"


def test_whatever_a_write_raises_is_no_success(tmp_path: Path) -> None:
    def fail(file: Path, content: str, go_on: Callable[[], bool]) -> None:
        raise ValueError("not an OSError")

    with pytest.raises(ValueError, match="not an OSError"):
        BoundedWrites(tmp_path / "state.json", fail)("new")
