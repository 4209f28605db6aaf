"""The Controller has every method that its two surfaces promise, with the same parameters."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.controller import Controller
from cluster.controller_api import ControlApi, OperatorApi, method_names
from cluster.messages import Rejected
from tests.cluster.desired.world import World


@pytest.mark.parametrize("api", [ControlApi, OperatorApi])
def test_the_controller_has_the_methods_that_callers_name(api: type) -> None:
    assert method_names(api)
    for name in method_names(api):
        promised, offered = inspect.signature(getattr(api, name)), inspect.signature(getattr(Controller, name))
        assert list(promised.parameters) == list(offered.parameters), name


def test_what_operators_do_cannot_be_called_by_instances_and_gateways() -> None:
    assert method_names(ControlApi) & method_names(OperatorApi) == {"take_package"}


@pytest.mark.parametrize(
    ("method", "arguments", "reason"),
    [
        ("rollback", ("a",), "there is nothing to roll back"),
        ("scale", ("a", "us", -1), ""),
        ("scale", ("nobody", None, 1), "nobody"),
        ("deregister_gateway", ("g",), "there is no method deregister_gateway"),
    ],
)
async def test_a_rejection_is_a_reply_and_no_exception(
    tmp_path: Path, method: str, arguments: tuple[Any, ...], reason: str
) -> None:
    """Serve logs an exception with a traceback, whatever it means."""
    reply = await World(tmp_path).controller.operate(method, *arguments)
    assert isinstance(reply, Rejected) and reason in reply.reason


async def test_an_operator_gets_what_the_method_returns(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await world.controller.operate("current") == await world.controller.current()


async def test_a_change_that_cannot_be_saved_is_rejected(tmp_path: Path) -> None:
    world = World(tmp_path)
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").write_text("no folder")
    reply = await world.controller.operate("scale", "a", "us", 2)
    assert isinstance(reply, Rejected) and "cannot be written" in reply.reason
