"""What outlives the Controller."""

from __future__ import annotations

import stat
from pathlib import Path

from cluster.desired.state import State, Store


def test_a_saved_state_is_loaded_as_it_was(tmp_path: Path) -> None:
    state = State("c", "d", {"agents": {}}, "/folder", {"app": {"identity": "x", "replicas": 1}}, [{"id": "instance-1"}])
    Store(tmp_path / "new" / "folder").save(state)
    assert Store(tmp_path / "new" / "folder").load() == state


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert Store(tmp_path).load() is None


def test_a_damaged_file_counts_as_none_and_is_kept_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for content in ("{", "[]", '{"format": 99}', '{"format": 1, "unknown": 1}', ""):
        (tmp_path / "state.json").write_text(content)
        assert store.load() is None
        assert (tmp_path / "state.damaged").read_text() == content


def test_the_key_is_made_once_and_only_its_owner_may_read_what_is_written(tmp_path: Path) -> None:
    key = Store(tmp_path).key()
    assert len(key) == 64 and Store(tmp_path).key() == key
    Store(tmp_path).save(State())
    for file in (tmp_path / "key", tmp_path / "state.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "state.json"], "no temporary file is left"
