"""What outlives the Controller."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from cluster.desired.rollout_transitions import CanaryState, Rollout, Version
from cluster.desired.state import AppliedConfig, AppRecord, InstanceCount, State, Store

FORMAT_1 = Path(__file__).with_name("state_format_1.json")  # written before the state had types

BLOCK = {"agent": "shop:agent", "regions": {"us": {"instances": 3}, "eu": {"instances": 1}}}
V2 = Version("v2", {"agent": "shop:agent"}, "e9b460cfb24ae143cadcbb7795c82858")


def test_a_saved_state_is_loaded_as_it_was(tmp_path: Path) -> None:
    state = State(
        "c", "d", AppliedConfig({"agents": {}}, "/folder"), {"app": AppRecord("x", 1)}, [{"id": "instance-1"}],
        {"a": {"us": InstanceCount(3, 2, "set by an operator", 1.5)}},
        {"a": Rollout(Version("v1"), "v1", CanaryState(V2, 10, 0, 1.0, 2.0), leaving=("v0",), used=("v2",))},
    )  # fmt: skip
    Store(tmp_path / "new" / "folder").save(state)
    assert Store(tmp_path / "new" / "folder").load() == state


def test_a_file_of_an_earlier_release_is_loaded_whole(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(FORMAT_1.read_bytes())
    state = Store(tmp_path).load()
    assert state is not None
    assert (state.ray_cluster, len(state.started_with), state.config.folder) == ("head", 64, "/folder")
    assert dict(state.config.agents) == {"a": BLOCK}
    assert state.apps["gateway.us"] == AppRecord("26e1d039335eb3cb", 2)
    assert state.apps["a.v2.eu"] == AppRecord("c0c1f8297d585d20", 1, "a", "v2", V2.package or "")
    assert state.counts == {"a": {"eu": InstanceCount(2, 1, "set by an operator", 1700000000.0)}}
    rollout = state.rollouts["a"]
    assert repr(rollout) == "<Rollout: v1, v2 10 %>" and rollout.canary is not None and rollout.canary.version == V2
    assert [instance["id"] for instance in state.instances] == ["instance-1"]


def test_what_is_written_has_the_names_of_an_earlier_release() -> None:
    """So that it can be read after going back, too: only a gateway's app gains two empty fields."""
    old = json.loads(FORMAT_1.read_text("utf-8"))
    written = json.loads(json.dumps(State.from_json(old).to_json()))
    old["apps"]["gateway.us"] |= {"version": "", "package": ""}
    assert written == old and list(written) == list(old)


def test_a_file_of_the_first_release_lacks_what_came_later(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"format": 1, "ray_cluster": "c", "apps": {"x": {"identity": "i", "replicas": 1}}}')
    assert Store(tmp_path).load() == State("c", apps={"x": AppRecord("i", 1)})


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
