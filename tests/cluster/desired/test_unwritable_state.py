"""A state folder that cannot be written: a command is refused and nothing has changed; what runs goes on."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.desired.packages import pack
from cluster.desired.rollout_manager import DeployRequest
from cluster.desired.state import State, StateNotSaved, Store
from tests.cluster.desired.world import World

ERRNOS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT]


class Disk:
    """Makes writing fail in one way until `works`: on opening a file, or on flushing what was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self._patch, self.number = monkeypatch, number
        self._real = {"open": os.open, "fsync": os.fsync}

    def fails(self) -> None:
        on_open = self.number in (errno.EROFS, errno.EACCES)
        self._patch.setattr(os, "open" if on_open else "fsync", self._refuse)

    def works(self) -> None:
        for name, real in self._real.items():
            self._patch.setattr(os, name, real)

    def _refuse(self, *_: Any, **__: Any) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture(params=ERRNOS, ids=lambda number: errno.errorcode[number])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, request.param)


def deploy(world: World) -> Any:
    return world.controller.deploy("a", DeployRequest(other_block(world), pack_of(world), 10))


def deploy_regions(world: World) -> Any:
    request = DeployRequest(world.args["agents"]["a"], stable_package(world), regions=("us", "eu", "ap"))
    return world.controller.deploy("a", request)


def deploy_another_agent(world: World) -> Any:
    return world.controller.deploy("b", DeployRequest(world.args["agents"]["a"], stable_package(world)))


def upload(world: World) -> Any:
    (world.folder / "shop.py").write_text("agent = 'not uploaded yet'")
    package = pack(world.folder, skip=[world.folder / "state"])
    return world.controller.take_package(package.digest, package.content)


def up(world: World) -> Any:
    block = {**world.args["agents"]["a"], "version": "blue", "regions": {"us": {"instances": 5}}}
    return world.controller.apply({**world.args, "agents": {"a": block}}, str(world.folder))


def scale(world: World) -> Any:
    return world.controller.scale("a", "us", 5)


ALONE: dict[str, Callable[[World], Any]] = {
    "deploy regions": deploy_regions,
    "deploy another agent": deploy_another_agent,
    "upload": upload,
    "up": up,
    "scale": scale,
    "rotate-key": lambda world: world.controller.rotate_session_key(),
}
WITH_CANARY: dict[str, Callable[[World], Any]] = {
    "rollback": lambda world: world.controller.rollback("a"),
    "promote": lambda world: world.controller.promote("a", 50),
    "promote down": lambda world: world.controller.promote("a", 5),
    "pause": lambda world: world.controller.pause("a", True),
    "resume": lambda world: world.controller.pause("a", False),
}


def everything(world: World) -> dict[str, Any]:
    """What operators, gateways and the next Controller see."""
    controller = world.controller
    snapshot = controller._snapshots.build(controller._session_keys, 0.0)
    events = [event for event in controller.events.find() if event.kind != "limit"]
    shown = controller.view
    return {
        "snapshot": pickle.dumps(replace(snapshot, circuits={})),
        "state": json.dumps(controller._state.to_json()),
        "files": {str(file): file.read_bytes() for file in sorted((world.folder / "state").rglob("*")) if file.is_file()},
        "desired": list(shown.desired_instances()),
        "weights": list(shown.weights()),
        "settings": shown.settings,
        "last": shown.autoscaling.last("a", "us"),
        "events": events,
    }


@pytest.mark.parametrize("name", [*ALONE, "deploy", *WITH_CANARY])
def test_a_command_is_refused_with_the_reason_and_nothing_has_changed(world: World, disk: Disk, name: str) -> None:
    if name in WITH_CANARY:
        world.deploy(10)
        world.rounds()
        if name == "resume":
            world.run(world.controller.pause("a", True))
    else:
        pack_of(world)
    command = deploy if name == "deploy" else {**ALONE, **WITH_CANARY}[name]
    before = everything(world)
    disk.fails()
    with pytest.raises(StateNotSaved) as refused:
        world.run(command(world))
    assert os.strerror(disk.number) in str(refused.value) and str(world.folder / "state") in str(refused.value)
    assert "nothing was changed" in str(pickle.loads(pickle.dumps(refused.value))), "as it arrives at the command line"
    disk.works()
    after = everything(world)
    assert {key for key in before if before[key] != after[key]} == set()
    # With room again, the same command is done.
    if name not in ("up", "scale"):  # they wait for a round
        world.run(command(world))
        assert everything(world) != before


def test_a_count_is_kept_as_it_was_before_the_refused_one(world: World, disk: Disk) -> None:
    world.controller._autoscaling.fix(world.controller._desired.file, "a", "us", 4, 7.0)
    disk.fails()
    with pytest.raises(StateNotSaved):
        world.run(world.controller.scale("a", "us", 9))
    assert world.controller.view.autoscaling.last("a", "us") == ("set by an operator", 7.0)


def test_reconciling_goes_on_and_status_shows_why_commands_are_refused(world: World, disk: Disk) -> None:
    world.deploy(10)
    disk.fails()
    world.serve.apps.pop("a.v1.eu")  # Serve has lost an app
    world.controller._reconciler._look_at = 0.0
    world.rounds()
    assert {"a.v1.eu", "a.v2.us", "a.v2.eu"} <= world.serve.apps.keys() and world.healthy("v1") == 4
    (warning,) = [warning for warning in world.controller.view.placement.warnings if "cannot be written" in warning]
    assert os.strerror(disk.number) in warning and str(world.folder / "state") in warning
    disk.works()
    world.rounds()
    assert not [warning for warning in world.controller.view.placement.warnings if "cannot be written" in warning]
    saved = Store(world.folder / "state").load()
    assert saved is not None and json.dumps(saved.to_json()) == json.dumps(world.controller._state.to_json())


def test_after_a_refused_command_status_warns_until_the_folder_can_be_written(world: World, disk: Disk) -> None:
    def warned() -> bool:
        return any("cannot be written" in warning for warning in world.controller.view.placement.warnings)

    world.deploy(10)
    world.rounds()
    disk.fails()
    with pytest.raises(StateNotSaved):
        world.run(world.controller.rollback("a"))
    for _ in range(3):  # nothing else has changed, so there is nothing to save
        world.round()
        assert warned()
    disk.works()
    world.rounds(2)
    assert not warned()


def test_a_step_of_a_rollout_waits_until_it_can_be_saved(world: World, disk: Disk) -> None:
    world.deploy(10)
    disk.fails()
    world.rounds()
    assert repr(world.rollout) == "<Rollout: v1, v2 0 %, to 10 %>" and "v2" in world.serve.versions()
    disk.works()
    world.rounds()
    assert repr(world.rollout) == "<Rollout: v1, v2 10 %>"


def test_a_controller_starts_from_a_folder_that_it_cannot_write(world: World, disk: Disk) -> None:
    world.deploy(10)
    world.rounds()
    disk.fails()
    world.start()
    world.rounds()
    assert repr(world.rollout) == "<Rollout: v1, v2 10 %>"


def test_nothing_is_left_beside_a_file_that_could_not_be_written(tmp_path: Path, disk: Disk) -> None:
    store = Store(tmp_path)
    store.save(State("c"))
    disk.fails()
    with pytest.raises(StateNotSaved):
        store.save(State("d"))
    disk.works()
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    assert Store(tmp_path).load() == State("c")


def other_block(world: World) -> dict[str, Any]:
    return {**world.args["agents"]["a"], "runtimeEnv": {"env": {"A": "1"}}}


def pack_of(world: World) -> str:
    """The digest of the folder's code, uploaded."""
    package = pack(world.folder, skip=[world.folder / "state"])
    world.controller.versions.packages.put(package)
    return package.digest


def stable_package(world: World) -> str:
    return world.rollout.stable.package or ""
