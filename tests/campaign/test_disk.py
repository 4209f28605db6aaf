"""The state folder's disk: full, read-only, immutable, frozen, and itself again after each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.campaign.disk import FROZEN, FULL, IMMUTABLE, READ_ONLY, Disk

HELD_S = 0.6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "state"
    folder.mkdir()
    made = Disk(folder, size_mb=16)
    yield made
    made.close()
    assert not list(tmp_path.rglob("*.img")), "the image is deleted"
    assert not os.path.ismount(folder)


def states(disk: Disk) -> dict[str, AbstractContextManager[None]]:
    return {FULL: disk.full(), READ_ONLY: disk.read_only(), IMMUTABLE: disk.immutable()}


def can_write(disk: Disk) -> bool:
    new = disk.folder / "new"
    try:
        new.write_bytes(b"x" * 10_000)
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            new.unlink()


@pytest.mark.parametrize("state", [FULL, READ_ONLY, IMMUTABLE])
def test_no_file_can_be_written_for_a_while_and_what_was_there_can_be_read(disk: Disk, state: str) -> None:
    if why := disk.why_not(state):
        pytest.skip(why)
    (disk.folder / "old").write_text("as it was")
    with states(disk)[state]:
        assert not can_write(disk)
        assert (disk.folder / "old").read_text() == "as it was"
    assert can_write(disk)


@pytest.mark.parametrize("state", [FULL, READ_ONLY, IMMUTABLE])
def test_the_disk_is_itself_again_after_an_error(disk: Disk, state: str) -> None:
    if why := disk.why_not(state):
        pytest.skip(why)
    with pytest.raises(KeyError), states(disk)[state]:
        raise KeyError
    assert can_write(disk)


def test_it_becomes_read_only_although_a_file_on_it_is_open(disk: Disk) -> None:
    if why := disk.why_not(READ_ONLY):
        pytest.skip(why)
    with (disk.folder / "log").open("wb"), disk.read_only():
        assert not can_write(disk)


@contextmanager
def freezing(disk: Disk, frozen_s: float, over: threading.Event | None = None) -> Iterator[None]:
    """The block begins when the disk is frozen."""
    begun = threading.Event()
    thread = threading.Thread(target=disk.freeze, args=(over or threading.Event(), begun.set, frozen_s))
    thread.start()
    assert begun.wait(30)
    yield
    thread.join()


def write_s(disk: Disk) -> float:
    """How long a write takes."""
    began = time.monotonic()
    (disk.folder / "new").write_text("x")
    return time.monotonic() - began


def test_a_write_to_a_frozen_disk_waits_until_it_thaws(disk: Disk) -> None:
    if why := disk.why_not(FROZEN):
        pytest.skip(why)
    with freezing(disk, 3 * HELD_S):
        assert write_s(disk) > HELD_S
    assert (disk.folder / "new").read_text() == "x"


def test_a_frozen_disk_thaws_at_once_when_the_faults_are_over(disk: Disk) -> None:
    if why := disk.why_not(FROZEN):
        pytest.skip(why)
    over = threading.Event()
    with freezing(disk, 60.0, over):
        threading.Timer(HELD_S, over.set).start()
        assert write_s(disk) < 30.0


def test_a_slow_disk_lets_a_write_through_between_two_times_that_it_is_frozen(disk: Disk) -> None:
    if why := disk.why_not(FROZEN):
        pytest.skip(why)
    over, begun = threading.Event(), threading.Event()
    thread = threading.Thread(target=disk.freeze, args=(over, begun.set, HELD_S, HELD_S, 20))
    thread.start()
    assert begun.wait(30)
    assert [write_s(disk) < 10 for _ in range(3)] == [True] * 3
    over.set()
    thread.join()
    assert can_write(disk)


def test_a_disk_that_is_closed_while_frozen_is_unmounted(disk: Disk) -> None:
    if why := disk.why_not(FROZEN):
        pytest.skip(why)
    with freezing(disk, HELD_S):
        disk.close()
    assert disk.kind == "" and not os.path.ismount(disk.folder)


def test_only_a_disk_of_its_own_can_be_frozen(disk: Disk) -> None:
    disk.close()
    assert "ext4" in disk.why_not(FROZEN)
    with pytest.raises(OSError, match="frozen"):
        disk.freeze(threading.Event(), lambda: None, 1.0)
