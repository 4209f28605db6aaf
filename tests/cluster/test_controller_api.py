"""The Controller has every method that its two surfaces promise, with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from cluster.controller import Controller
from cluster.controller_api import ControlApi, OperatorApi, method_names


@pytest.mark.parametrize("api", [ControlApi, OperatorApi])
def test_the_controller_has_the_methods_that_callers_name(api: type) -> None:
    assert method_names(api)
    for name in method_names(api):
        promised, offered = inspect.signature(getattr(api, name)), inspect.signature(getattr(Controller, name))
        assert list(promised.parameters) == list(offered.parameters), name


def test_what_operators_do_cannot_be_called_by_instances_and_gateways() -> None:
    assert method_names(ControlApi) & method_names(OperatorApi) == {"take_package"}
